"""The one waiting room: who waits at the router, for what, in which order, and how many may.

Pure: no clock, no task, no socket. `dispatch.waiting` puts requests in, and has them tried when something changes.

All who can go to the same endpoints are one *line*. So where its first cannot go on, none of it can: a change costs one
try for each line, and one for each request that goes on. Of several lines, the one whose first has the least rank is
tried first.

*Rank* is when a request came, and `AGEING` times what it should take: of those that came together the shortest is the
first, and who waits ages. So nobody starves: whoever comes later than a request's rank goes behind it.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Final, Generic, NamedTuple, TypeVar

AGEING: Final = 5.0
"""Seconds that another one may have come later, and still go first, for each second that it is shorter."""


class WaitReason(StrEnum):
    """What a request waits for."""

    NOT_READY = "not_ready"
    """No endpoint of its model is ready."""
    FULL = "full"
    """Those that are have as many requests as they run."""
    NO_CONNECTION = "no_connection"
    """There is no file descriptor left for a connection to one."""


class Line(NamedTuple):
    model: str
    only: Hashable = None
    """The one endpoint that can answer it."""
    tried: frozenset[str] = frozenset()
    """Where it is not to go again."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One request."""

    line: Line
    scope: str
    """Whose limit it counts for."""
    size: int
    """Bytes."""
    rank: float
    reason: WaitReason
    """The room writes it, once it is in."""
    order: tuple[float, int] = (0.0, 0)
    """Of rank, then of coming. The room writes it."""


W = TypeVar("W", bound=Waiter)


class Room(Generic[W]):
    """Whoever is in it is in exactly one line."""

    def __init__(self, most_bytes: int) -> None:
        self.counts: Counter[tuple[WaitReason, str]] = Counter()
        """By scope; so for the next two: to be read only."""
        self.totals: Counter[WaitReason] = Counter(dict.fromkeys(WaitReason, 0))
        self.bytes = 0
        self._most_bytes = most_bytes
        self._lines: dict[Line, list[W]] = {}
        """In order; none is empty."""
        self._came = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[W]:
        return (waiter for line in self._lines.values() for waiter in line)

    def ahead(self, model: str, rank: float) -> int:
        """Of those who wait for the model, how many go before one of that rank."""
        lines = (line for name, line in self._lines.items() if name.model == model)
        return sum(bisect_left(line, (rank, 0), key=_order) for line in lines)

    def enter(self, waiter: W, most: int) -> bool:
        """False where there is no room for it. `most`: that may wait for the same thing in the same scope."""
        count = self.counts[waiter.reason, waiter.scope]
        if count >= most or self.bytes + waiter.size > self._most_bytes:
            return False
        self._came += 1
        waiter.order = waiter.rank, self._came
        insort(self._lines.setdefault(waiter.line, []), waiter, key=_order)
        self._count(waiter, 1)
        self.bytes += waiter.size
        return True

    def leave(self, waiter: W) -> None:
        """However its wait ended; the second time does nothing."""
        line = self._lines.get(waiter.line, [])
        place = bisect_left(line, waiter.order, key=_order)
        if place == len(line) or line[place] is not waiter:
            return
        del line[place]
        if not line:
            del self._lines[waiter.line]
        self._count(waiter, -1)
        self.bytes -= waiter.size

    def advance(self, go: Callable[[W], WaitReason | None], concerned: Callable[[str], bool] | None = None) -> list[W]:
        """Let those go on who can, after something has changed for the models `concerned`; None: for all.

        `go` sends one on, or says what it still waits for. Gives those who wait for something else than before.
        """
        heads = [(line[0].order, name) for name, line in self._lines.items() if not concerned or concerned(name.model)]
        heapify(heads)
        changed: list[W] = []
        while heads:
            _, name = heappop(heads)
            first = self._lines[name][0]
            if (reason := go(first)) is not None:
                changed += self._all_wait_for(name, reason)
                continue
            self.leave(first)
            if (line := self._lines.get(name)) is not None:
                heappush(heads, (line[0].order, name))
        return changed

    def _all_wait_for(self, name: Line, reason: WaitReason) -> list[W]:
        """They are in already, so no limit holds for them."""
        changed = [waiter for waiter in self._lines[name] if waiter.reason is not reason]
        for waiter in changed:
            self._count(waiter, -1)
            waiter.reason = reason
            self._count(waiter, 1)
        return changed

    def _count(self, waiter: W, one: int) -> None:
        place = waiter.reason, waiter.scope
        self.totals[waiter.reason] += one
        self.counts[place] += one
        if not self.counts[place]:
            del self.counts[place]  # Names of models come and go.


def _order(waiter: Waiter) -> tuple[float, int]:
    return waiter.order
