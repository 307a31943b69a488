"""What `headwater bench` asks and measures: conversations that share a beginning, and what each answer took."""

import asyncio
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import httpx

_WORDS: Final = (
    "river",
    "stone",
    "water",
    "light",
    "field",
    "morning",
    "valley",
    "bridge",
    "winter",
    "forest",
    "cloud",
)
_SHARED_GROUPS: Final = 4
"""Different beginnings: what there is to gain where requests go to caches that hold theirs."""


@dataclass(slots=True)
class Answer:
    """One streamed answer. Times in seconds, on the clock of `time.perf_counter`."""

    started: float
    arrivals: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ended: float = 0.0
    error: str = ""
    """Why there is none."""

    @property
    def ttft(self) -> float:
        """To the first token."""
        return self.arrivals[0] - self.started

    @property
    def tpot(self) -> float:
        """For each further token, mean; several may come in one chunk."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Times between two chunks."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


@dataclass(slots=True, frozen=True)
class Shape:
    """What requests are like. Prompts are counted in words, since tokens are the model's own."""

    requests: int
    concurrency: int
    prompt_words: int
    shared: float
    """Part of each prompt that a quarter of all requests have in common."""
    max_tokens: int


def prompts(shape: Shape, seed: int) -> list[list[dict[str, str]]]:
    """Messages of each request: the same for the same seed."""
    chance = random.Random(seed)
    shared = round(shape.prompt_words * shape.shared)
    beginnings = [text(chance, shared) for _ in range(_SHARED_GROUPS)]
    made = []
    for number in range(shape.requests):
        own = {"role": "user", "content": text(chance, max(1, shape.prompt_words - shared))}
        beginning = beginnings[number % _SHARED_GROUPS]
        made.append([{"role": "system", "content": beginning}, own] if beginning else [own])
    return made


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=words))


async def run(
    client: httpx.AsyncClient, model: str, shape: Shape, seed: int, answered: Callable[[Answer], None]
) -> list[Answer]:
    """All requests, `shape.concurrency` at a time. What fails is an answer, too."""
    waiting = iter(prompts(shape, seed))
    answers: list[Answer] = []

    async def one_after_another() -> None:
        for messages in waiting:
            body = {"model": model, "messages": messages, "max_tokens": shape.max_tokens, "temperature": 0}
            answers.append(await ask(client, body))
            answered(answers[-1])

    await asyncio.gather(*(one_after_another() for _ in range(shape.concurrency)))
    return answers


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """One request, whose answer is streamed whatever `body` says."""
    answer = Answer(time.perf_counter())
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", "/chat/completions", json=streamed) as response:
            if response.status_code != 200:
                answer.error = f"{response.status_code}: {(await response.aread()).decode(errors='replace')[:200]}"
            async for event in _events(response):
                _take(answer, event)
    except httpx.HTTPError as error:
        answer.error = str(error) or type(error).__name__
    answer.ended = time.perf_counter()
    if not answer.arrivals and not answer.error:
        answer.error = "an answer without a token"
    return answer


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    if response.status_code != 200:
        return
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def _take(answer: Answer, event: dict[str, Any]) -> None:
    if (error := event.get("error")) is not None:
        answer.error = str(error.get("message", error) if isinstance(error, dict) else error)
    delta = (event.get("choices") or [{}])[0].get("delta") or {}
    if delta.get("content") or delta.get("reasoning_content"):
        answer.arrivals.append(time.perf_counter())
    if (usage := event.get("usage")) is not None:
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.output_tokens = usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


@dataclass(slots=True, frozen=True)
class Summary:
    """Of all answers of one run. Times in milliseconds."""

    model: str
    concurrency: int
    requests: int
    failed: int
    seconds: float
    prompt_tokens: float
    """Of a request, as a mean."""
    output_tokens: float
    """Of an answer, likewise."""
    output_tokens_per_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    gap_p99: float
    """Of all times between two chunks of a stream."""
    cached_share: float
    """Of all prompt tokens, as the server counts them."""
    goodput: float
    """Requests a second that kept both objectives."""

    @classmethod
    def of(
        cls, model: str, concurrency: int, answers: Sequence[Answer], ttft_objective: float, tpot_objective: float
    ) -> "Summary":
        """Objectives in milliseconds."""
        whole = [each for each in answers if not each.error]
        seconds = max(each.ended for each in answers) - min(each.started for each in answers)
        ttft, tpot = ([1000 * getattr(each, name) for each in whole] for name in ("ttft", "tpot"))
        gaps = [1000 * gap for each in whole for gap in each.gaps]
        kept = sum(a <= ttft_objective and b <= tpot_objective for a, b in zip(ttft, tpot, strict=True))
        prompt, output = (sum(getattr(each, f"{name}_tokens") for each in whole) for name in ("prompt", "output"))
        return cls(
            model=model,
            concurrency=concurrency,
            requests=len(answers),
            failed=len(answers) - len(whole),
            seconds=seconds,
            prompt_tokens=prompt / max(1, len(whole)),
            output_tokens=output / max(1, len(whole)),
            output_tokens_per_s=output / seconds,
            ttft_p50=percentile(ttft, 0.5),
            ttft_p99=percentile(ttft, 0.99),
            tpot_p50=percentile(tpot, 0.5),
            tpot_p99=percentile(tpot, 0.99),
            gap_p99=percentile(gaps, 0.99),
            cached_share=sum(each.cached_tokens for each in whole) / prompt if prompt else 0.0,
            goodput=kept / seconds,
        )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest that at least `share` of the values do not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0
