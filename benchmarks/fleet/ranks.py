"""Data-parallel ranks behind one address: each is an engine with a cache of its own.

Where a request does not say which of them is to answer it, who is at the address chooses. That is vLLM's internal load
balancing: the rank with the least of four times the waiting and the running requests. It does not look at what they
hold, so the router finds a part of what it expects, and learns to expect less there.
"""

import asyncio
from collections.abc import Callable

from benchmarks.fleet.engine import Engine, Stay
from benchmarks.fleet.hardware import Hardware
from benchmarks.fleet.requests import Request
from headwater.backends.metrics import Adapters, TokenTimes


class RanksMemory:
    """Of all ranks together."""

    def __init__(self, ranks: list[Engine]) -> None:
        self._ranks = ranks

    @property
    def usage(self) -> float:
        return sum(each.memory.usage for each in self._ranks) / len(self._ranks)

    @property
    def taken(self) -> int:
        return sum(each.memory.taken for each in self._ranks)

    def holds(self, key: int) -> bool:
        return any(each.memory.holds(key) for each in self._ranks)


class Ranks:
    """To the router, an `Engine`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hardware: Hardware,
        count: int,
        speed: float = 1.0,
        adapters: int | None = None,
    ) -> None:
        self.hardware = hardware
        self.speed = speed
        self.ranks = [Engine(loop, hardware, speed, adapters) for _ in range(count)]
        self.memory = RanksMemory(self.ranks)

    @property
    def running(self) -> int:
        return sum(each.running for each in self.ranks)

    @property
    def waiting(self) -> int:
        return sum(each.waiting for each in self.ranks)

    @property
    def kv_tokens(self) -> int:
        return self.hardware.kv_tokens * len(self.ranks)

    @property
    def adapters(self) -> Adapters | None:
        told = [each.adapters for each in self.ranks if each.adapters is not None]
        names = dict.fromkeys(name for each in told for name in each.names)
        return Adapters(sum(each.slots for each in told), tuple(names)) if told else None

    @property
    def token_times(self) -> TokenTimes:
        seconds, tokens = zip(*(each.token_times for each in self.ranks), strict=True)
        return TokenTimes(sum(seconds), sum(tokens))

    def submit(self, request: Request, on_first: Callable[[float], None]) -> Stay:
        """Raises TurnedDownError."""
        return min(self.ranks, key=lambda rank: 4 * rank.waiting + rank.running).submit(request, on_first)

    def die(self) -> None:
        for each in self.ranks:
            each.die()
