"""A load generator that costs next to nothing: prepared requests, kept connections, no parsing beyond an answer's end.

    python benchmarks/http_load.py --port 8080 --requests 20000 --concurrency 32 [--stream] [--prompt-bytes 2048]

Prints one JSON object: requests a second, latency in milliseconds (median and 99th percentile), and how many answers
were whole. It shares the cores with what it measures, so it does as little as it can.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import cast

import uvloop

PROMPT_BYTES = 2048
TOKENS = 64
"""That an answer has at most, which is how many our mock engines give."""
_GROUPS = 16
"""Different system prompts: what there is to gain by prefix."""
_MOST_BYTES = 64 * 2**20
"""Of all prepared requests."""
KEY = "sk-benchmark-0123456789"


def requests(stream: bool, prompt_bytes: int = PROMPT_BYTES, tokens: int = TOKENS, seed: int = 1) -> list[bytes]:
    """Chat requests: half a system prompt that a sixteenth of them share, half a question of their own."""
    rng = random.Random(seed)
    count = min(2000, _MOST_BYTES // prompt_bytes)
    half = prompt_bytes // 2
    words = ["river", "stone", "cloud", "amber", "forest", "quiet", "engine", "harbor", "window", "copper"]
    systems = [" ".join(rng.choices(words, k=half // 5))[:half] for _ in range(_GROUPS)]
    prepared = []
    for number in range(count):
        question = f"{number} " + " ".join(rng.choices(words, k=half // 5))
        messages = [
            {"role": "system", "content": rng.choice(systems)},
            {"role": "user", "content": question[:half]},
        ]
        content = {"model": "mock", "messages": messages, "max_tokens": tokens, "temperature": 0.7, "stream": stream}
        body = json.dumps(content, separators=(",", ":")).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {KEY}\r\nuser-agent: load\r\naccept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        prepared.append(head.encode() + body)
    return prepared


class LoadConnection(asyncio.Protocol):
    """Sends the next request as soon as the answer to the last is there."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._received = b""
        self._missing = 0
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        if self._load.stream:
            self._received = (self._received + data)[-64:]
            if self._received.endswith(b"0\r\n\r\n"):
                self._ended(b"[DONE]" in self._received)
            return
        if not self._missing:
            self._received += data
            head, separator, data = self._received.partition(b"\r\n\r\n")
            if not separator:
                return
            self._missing = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            self._received = head[:12]
        self._missing -= len(data)
        if self._missing <= 0:
            self._ended(self._received == b"HTTP/1.1 200")

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.connection_ended()

    def _ended(self, whole: bool) -> None:
        self._load.answered(time.perf_counter() - self._sent_at, whole)
        self._next()

    def _next(self) -> None:
        assert self._transport is not None
        self._received, self._missing = b"", 0
        request = next(self._load.pending, None)
        if request is None:
            self._transport.close()
        else:
            self._sent_at = time.perf_counter()
            self._transport.write(request)


class Load:
    """One run."""

    def __init__(self, count: int, stream: bool, prompt_bytes: int, tokens: int) -> None:
        prepared = requests(stream, prompt_bytes, tokens)
        self.stream = stream
        self.pending: Iterator[bytes] = (prepared[number % len(prepared)] for number in range(count))
        self._latencies: list[float] = []
        self._whole = 0
        self._open = 0
        self._done = asyncio.Event()

    async def run(self, port: int, concurrency: int) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        self._open = concurrency
        begin = time.perf_counter()
        for _ in range(concurrency):
            await loop.create_connection(lambda: LoadConnection(self), "127.0.0.1", port)
        await self._done.wait()
        seconds = time.perf_counter() - begin
        latencies = sorted(self._latencies)
        return {
            "rps": len(latencies) / seconds,
            "p50_ms": 1000 * latencies[len(latencies) // 2],
            "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
            "whole": self._whole,
        }

    def answered(self, seconds: float, whole: bool) -> None:
        self._latencies.append(seconds)
        self._whole += whole

    def connection_ended(self) -> None:
        self._open -= 1
        if not self._open:
            self._done.set()


async def run(
    port: int, count: int, concurrency: int, stream: bool, prompt_bytes: int = PROMPT_BYTES, tokens: int = TOKENS
) -> dict[str, float]:
    return await Load(count, stream, prompt_bytes, tokens).run(port, concurrency)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--prompt-bytes", type=int, default=PROMPT_BYTES)
    options = parser.parse_args()
    load = run(options.port, options.requests, options.concurrency, options.stream, options.prompt_bytes)
    print(json.dumps(uvloop.run(load)))


if __name__ == "__main__":
    main()
