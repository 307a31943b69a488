"""What clients send: streams of bytes that stand for tokens, four each, as an English text has about four a token."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.fleet.memory import BYTES


@dataclass(slots=True, eq=False)
class Request:
    at: float
    """Seconds since the start."""
    prompt: bytes
    answer: bytes
    """What the engine will generate: a next turn repeats it."""
    streamed: bool = True
    adapter: str = ""
    session: str | None = None
    then: Callable[[float], "Request | None"] | None = None
    """The client's next request, given when the answer ended."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt) // BYTES

    @property
    def output_tokens(self) -> int:
        return len(self.answer) // BYTES


@lru_cache(maxsize=512)
def shared(name: str, tokens: int) -> bytes:
    """A text that many requests have in common, known by its name."""
    return random.Random(name).randbytes(BYTES * tokens)


def fresh(rng: random.Random, tokens: int) -> bytes:
    """A text that nobody has sent before."""
    return rng.randbytes(BYTES * max(tokens, 1))


def arrivals(rng: random.Random, per_second: float, seconds: float) -> Iterator[float]:
    """Of independent clients."""
    at = rng.expovariate(per_second)
    while at < seconds:
        yield at
        at += rng.expovariate(per_second)


def around(rng: random.Random, mean: float, sigma: float = 0.5, most: float = 20.0) -> int:
    """A length of log-normal spread with this mean, at most so many times it."""
    return max(1, round(min(mean * rng.lognormvariate(-sigma * sigma / 2, sigma), most * mean)))
