"""All connections of clients: what they share, and how long each may take over what it is about.

Nobody sets a timer for a connection. Each is filed by what it is about, with the time since when; once a second the
ones that have been at it the longest are looked at, until one is found that has time left.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import takewhile
from typing import TYPE_CHECKING, Final, TypeVar

from headwater.http.bodies import BodyBudget
from headwater.http.cors import Cors
from headwater.http.descriptors import Descriptors
from headwater.http.parser import Admit
from headwater.http.request import Request
from headwater.http.seats import Seats
from headwater.openai.errors import ServiceUnavailableError

if TYPE_CHECKING:
    from headwater.http.connection import ClientConnection
    from headwater.http.writer import AnswerWriter


class State(StrEnum):
    """What a connection is about."""

    IDLE = "idle"
    """Nothing of the next request has come."""
    READING_HEAD = "reading head"
    READING_BODY = "reading body"
    WAITING = "waiting"
    """Its body is read on when there is memory for it."""
    ANSWERING = "answering"
    CLOSING = "closing"
    """The last answer is on its way to the client; what comes from there is thrown away."""
    CLOSED = "closed"


IDLE, READING_HEAD, READING_BODY, WAITING, ANSWERING, CLOSING, CLOSED = State
"""In Python 3.11 a member takes ten times as long to find in its class."""

_WAYS_OUT: Final = (CLOSING, CLOSED)
NEXT: Final = {
    IDLE: frozenset((READING_HEAD, READING_BODY, ANSWERING, *_WAYS_OUT)),
    READING_HEAD: frozenset((READING_BODY, ANSWERING, *_WAYS_OUT)),
    # Of a body that nobody wants the rest is read behind the answer: then comes another request, or nothing yet. The
    # first of them counts anew how much has come.
    READING_BODY: frozenset((READING_BODY, IDLE, READING_HEAD, WAITING, ANSWERING, *_WAYS_OUT)),
    WAITING: frozenset((READING_BODY, ANSWERING, *_WAYS_OUT)),
    ANSWERING: frozenset((ANSWERING, IDLE, READING_HEAD, READING_BODY, *_WAYS_OUT)),
    CLOSING: frozenset((CLOSED,)),
    CLOSED: frozenset[State](),
}

PATIENCE: Final = {IDLE: 75.0, READING_HEAD: 10.0, READING_BODY: 10.0, WAITING: 30.0, CLOSING: 30.0}
"""Seconds. Of a body, at least `LEAST_OF_BODY` must have come in each of these."""
CROWDED_PATIENCE: Final = {IDLE: 5.0, READING_HEAD: 5.0, READING_BODY: 10.0, WAITING: 10.0, CLOSING: 5.0}
"""The same while others find no room."""
ANTEROOM_PATIENCE: Final = 3.0
"""Seconds in all for who was let in only to be told that there is no room."""
READER_PATIENCE: Final = 120.0
"""Seconds in which a client must take something of an answer that waits for it."""
LEAST_OF_BODY: Final = 10 * 1024
"""Bytes: 1 KiB a second."""
TURN_PATIENCE: Final = 1.0
"""Seconds for `LEAST_OF_TURN`, of a body that others wait for."""
LEAST_OF_TURN: Final = 1024 * 1024


@dataclass(slots=True, eq=False)
class Clients:
    """What all connections of clients share."""

    handle: Callable[[Request, "ClientConnection"], Awaitable[None]]
    """Answers a request."""
    descriptors: Descriptors
    seats: Seats
    bodies: BodyBudget
    max_head: int
    """Bytes."""
    max_body: int
    admit: Admit | None = None
    cors: Cors | None = None
    on_leave: Callable[[], None] = lambda: None
    """Called when a descriptor is free again."""
    leaving: bool = False
    """The server is about to end: each connection ends with its next answer, so that its client asks elsewhere."""
    open: "set[ClientConnection]" = field(default_factory=set)
    since: "dict[State, dict[ClientConnection, float]]" = field(default_factory=lambda: {state: {} for state in State})
    """Those in each state, and since when (monotonic seconds); in that order."""
    unread: "dict[AnswerWriter, float]" = field(default_factory=dict)
    """Those that have an answer waiting for their clients to take it; likewise."""
    anteroom: "dict[ClientConnection, float]" = field(default_factory=dict)

    def tick(self, now: float) -> None:
        """Look at those whose time is up. `now`: monotonic seconds."""
        for state, seconds in (CROWDED_PATIENCE if self.descriptors.crowded else PATIENCE).items():
            for connection in _until(self.since[state], now - seconds):
                connection.time_is_up(now)
        self.bodies.tick(now)
        for writer in _until(self.unread, now - READER_PATIENCE):
            writer.look_at_reader(now)
        for connection in _until(self.anteroom, now - ANTEROOM_PATIENCE):
            connection.abort()


_Connection = TypeVar("_Connection", bound="AnswerWriter")


def _until(since: dict[_Connection, float], latest: float) -> list[_Connection]:
    return [connection for connection, _ in takewhile(lambda item: item[1] <= latest, since.items())]


def too_many_connections() -> ServiceUnavailableError:
    return ServiceUnavailableError("The server has too many open connections.", code="overloaded", retry_after=1)
