"""The memory that clients' requests take: counted over all connections, waited for, and refused before it is too much.

What counts is what has come, not what was announced: a head that announces 32 MiB costs its sender nothing, and a few
of them would keep everybody else out.

When half of the memory is taken, connections whose body is not whole yet are not read from any more and stand in a
line, where the client's system holds back what is still to come. One of them at a time has its turn and is read to its
body's end: many that are read a little each would fill the memory with bodies that nobody can answer. When three
quarters are taken, nobody has a turn. The last quarter is for what comes from a connection before it can be told to
wait.
"""

from collections import OrderedDict
from typing import Protocol

from headwater.openai.errors import ServiceUnavailableError


class BodyReader(Protocol):
    """A connection whose body is not whole yet."""

    def go_on(self) -> None:
        """Its turn has come: it is to be read from."""

    def look_at_turn(self, now: float) -> None:
        """It has its turn. Is that worth the wait of others? `now`: monotonic seconds."""


class BodyBudget:
    """Bytes of requests that are being read, wait for their turn, or are being answered and not dropped yet."""

    __slots__ = ("_full", "_line", "_mark", "_turn", "in_flight", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._mark = limit // 2
        """Above it, bodies wait for their turn."""
        self._full = limit * 3 // 4
        """Above it, nobody gets a turn."""
        self._line: OrderedDict[BodyReader, None] = OrderedDict()
        self._turn: BodyReader | None = None

    def take(self, count: int) -> bool:
        """Count these, if there is room for them. Whoever took is to `give` back later."""
        if self.in_flight + count > self.limit:
            return False
        self.in_flight += count
        return True

    def give(self, count: int) -> None:
        self.in_flight -= count
        assert self.in_flight >= 0, "more was given back than was taken"
        if self._line:
            self._move()

    # The line

    @property
    def waiting(self) -> int:
        """Connections in the line."""
        return len(self._line)

    @property
    def crowded(self) -> bool:
        """Whether anybody waits, or has a turn."""
        return bool(self._line) or self._turn is not None

    def must_wait(self, reader: BodyReader) -> bool:
        """Whether it is not to be read from for now: then it is to stop, and to `wait`."""
        if self._turn is reader:
            return self.in_flight > self._full
        return self.in_flight > self._mark or bool(self._line)

    def wait(self, reader: BodyReader) -> None:
        """It stands in the line until it is told to go on. Who had its turn, and finds the memory full, stays first."""
        had_turn = self._turn is reader
        self._line[reader] = None
        if had_turn:
            self._turn = None
            if self.in_flight > self._full:
                self._line.move_to_end(reader, last=False)
        self._move()

    def leave(self, reader: BodyReader) -> None:
        """Its body is whole, or nobody wants it any more. Does nothing for one that neither waits nor has a turn."""
        self._line.pop(reader, None)
        if self._turn is reader:
            self._turn = None
        self._move()

    def tick(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if self._turn is not None and self._line:
            self._turn.look_at_turn(now)

    def _move(self) -> None:
        if self._turn is None and self._line and self.in_flight <= self._full:
            self._turn, _ = self._line.popitem(last=False)
            self._turn.go_on()


def out_of_memory() -> ServiceUnavailableError:
    return ServiceUnavailableError(
        "The server holds as many bytes of requests as it may.", code="overloaded", retry_after=1
    )
