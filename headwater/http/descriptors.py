"""How many connections this process may have open: file descriptors, shared out before the system refuses one.

A stream takes one, and in the router a second one, to the endpoint. Whoever asks the system for one more than it allows
gets an error, be it a client, a request, a probe or a log file; so connections are counted here, and a reserve is left
to the rest. An engine forwards nothing: it has clients only.

    limit of open files
    ├── reserve       logs, look-ups, probes at work, KV events
    ├── anteroom      clients beyond what is below: they are told at once that there is no room, or the server's health
    └── room
        ├── clients   up to three quarters, so that those who came can also be served
        ├── requests  one for each that is being forwarded; some are left for clients who come to wait
        └── kept      idle connections to endpoints: closed when one of the others needs theirs

A request that finds no room waits until another one ends; where, is for the router to say.
"""

import resource
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

_RESERVE: Final = 128
_OF_AN_ENDPOINT: Final = 6
"""A probe's connection, and what a subscriber to KV events holds."""
_SCARCE: Final = 128
"""Of a limit below, what the process has open at rest, some 30 in an engine, is a large part."""
ANTEROOM: Final = 32
KEPT_SECONDS: Final = 60.0
"""That an idle connection to an endpoint is kept."""


class Closable(Protocol):
    def close(self) -> None: ...


class Place(Enum):
    """What a client's connection was let in to."""

    ROOM = "room"
    ANTEROOM = "anteroom"


class Descriptors:
    """See the module. All methods are for one thread; none waits."""

    def __init__(self, limit: int) -> None:
        """`limit`: open files that the process may have."""
        self._limit = limit
        self.anteroom = ANTEROOM if limit >= _SCARCE else max(2, limit // 16)
        """Places there."""
        self.reserve_for_endpoints(0)
        self.clients = 0
        self.requests = 0
        self._anteroom = 0
        self._kept: OrderedDict[Closable, float] = OrderedDict()
        """With the time of its last use; the one that was used longest ago first."""
        self._count_waiting: Callable[[], int] = lambda: 0
        self._on_room: Callable[[], None] = lambda: None

    @classmethod
    def of_process(cls) -> "Descriptors":
        """Raises the soft limit to the hard one: the usual 1024 would be the first thing to run out."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return cls(hard if hard != resource.RLIM_INFINITY else 2**20)

    def follow(self, waiting: Callable[[], int], on_room: Callable[[], None]) -> None:
        """`waiting`: how many requests wait for one. `on_room` is called when there may be one for them."""
        self._count_waiting, self._on_room = waiting, on_room

    def reserve_for_endpoints(self, count: int) -> None:
        reserve = _RESERVE + _OF_AN_ENDPOINT * count + self.anteroom
        self.room = max(self._limit - reserve, self._limit // (2 if self._limit >= _SCARCE else 4))
        self.most_clients = self.room * 3 // 4
        self._most_with_requests = self.room - max(self.room // 40, min(64, self.room // 8))

    @property
    def crowded(self) -> bool:
        """Whether somebody waits, or is sent away: a connection that nobody uses is then one too many."""
        return bool(self.waiting) or not self._has_place()

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return self._count_waiting()

    # Clients

    def admit(self) -> Place | None:
        """Let a client in, if there is any place for it. Each one that was let in is to `leave` later."""
        if self._has_place():
            self.clients += 1
            self._close_kept()
            return Place.ROOM
        return self.admit_to_anteroom()

    def admit_to_anteroom(self) -> Place | None:
        """As `admit`, for a client that is not to take a place from others."""
        if self._anteroom < self.anteroom:
            self._anteroom += 1
            return Place.ANTEROOM
        return None

    def leave(self, place: Place) -> None:
        if place is Place.ANTEROOM:
            self._anteroom -= 1
        else:
            self.clients -= 1
            self._tell()

    def _has_place(self) -> bool:
        return self.clients < self.most_clients and self.clients + self.requests < self.room

    # Requests

    def take(self) -> bool:
        """Count a request that is forwarded, if there is room for it. Whoever took is to `give` later."""
        if self.clients + self.requests >= self._most_with_requests:
            return False
        self.requests += 1
        return True

    def give(self) -> None:
        self.requests -= 1
        self._tell()

    def _tell(self) -> None:
        if self._count_waiting():
            self._on_room()

    # Idle connections to endpoints

    def keep(self, connection: Closable, now: float) -> None:
        self._kept[connection] = now
        self._close_kept()

    def unkeep(self, connection: Closable) -> None:
        """It is used again, or closed."""
        self._kept.pop(connection, None)

    def make_room(self) -> None:
        """A request is about to open a connection."""
        self._close_kept()

    def close_unused(self, now: float) -> None:
        """Close those that nobody has used for a while: a burst shall not leave its connections behind for good."""
        while self._kept and next(iter(self._kept.values())) <= now - KEPT_SECONDS:
            self._kept.popitem(last=False)[0].close()

    def _close_kept(self) -> None:
        while self._kept and self.clients + self.requests + len(self._kept) > self.room:
            self._kept.popitem(last=False)[0].close()
