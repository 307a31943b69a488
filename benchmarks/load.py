"""A light load generator for OpenAI-compatible servers: raw asyncio sockets, so that it leaves the cores to the server.

Used by the benchmarks here; measures each streamed answer's time to first token and the times between tokens.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from headwater.cli.load import Answer, percentile

GREEDY: Mapping[str, float] = {"temperature": 0}
"""Of sampling parameters."""


@dataclass(slots=True, frozen=True)
class Summary:
    """Of one run of many requests."""

    tokens_per_s: float
    ttft: float
    """Median, seconds."""
    ttft_p99: float
    inter_token: float
    """Mean over requests, seconds."""
    gap_p50: float
    """Of all times between two chunks, seconds."""
    gap_p99: float
    cached_share: float
    """Of all prompt tokens."""

    @classmethod
    def of(cls, answers: Sequence[Answer], prompt_tokens: int) -> "Summary":
        gaps = [gap for answer in answers for gap in answer.gaps]
        wall = max(answer.ended for answer in answers) - min(answer.started for answer in answers)
        return cls(
            tokens_per_s=sum(answer.output_tokens for answer in answers) / wall,
            ttft=median(answer.ttft for answer in answers),
            ttft_p99=percentile([answer.ttft for answer in answers], 0.99),
            inter_token=mean(answer.tpot for answer in answers),
            gap_p50=percentile(gaps, 0.5),
            gap_p99=percentile(gaps, 0.99),
            cached_share=sum(answer.cached_tokens for answer in answers) / prompt_tokens,
        )


async def complete(
    port: int, model: str, prompt: Sequence[int], max_tokens: int, sampling: Mapping[str, float] = GREEDY
) -> Answer:
    """One streamed completion of exactly `max_tokens` tokens. Raises RuntimeError where the server refuses."""
    body = json.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            **sampling,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    answer = Answer(time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r}: {(await reader.read()).decode(errors='replace')}")
    async for line in reader:
        if b'"text":' in line and b'"text":""' not in line:
            answer.arrivals.append(time.perf_counter())
        if b'"prompt_tokens"' in line:
            usage = json.loads(line[6:])["usage"]
            answer.output_tokens = usage["completion_tokens"]
            answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    answer.ended = time.perf_counter()
    writer.close()
    if answer.output_tokens != max_tokens:
        raise RuntimeError(f"asked for {max_tokens} tokens and got {answer.output_tokens}")
    return answer


async def run(
    port: int,
    model: str,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    concurrency: int,
    sampling: Mapping[str, float] = GREEDY,
) -> Summary:
    """All prompts, `concurrency` at a time."""
    waiting = iter(prompts)
    answers: list[Answer] = []

    async def worker() -> None:
        for prompt in waiting:
            answers.append(await complete(port, model, prompt, max_tokens, sampling))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return Summary.of(answers, sum(map(len, prompts)))
