"""A client's connection: requests are answered one after the other, in the order in which they came.

Pieces of a stream are written straight to the socket. A client that leaves takes the task down that answers it, at once
and wherever that task is waiting; one that is slow holds it back.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, cast

from headwater_router.descriptors import Descriptors, Place
from headwater_router.gateway.request import Headers, Request, RequestParser

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_MOST_QUEUED: Final = 16
"""Requests sent without waiting for the answers to those before."""
_MOST_QUEUED_BYTES: Final = 256 * 1024
_WITHOUT_BODY: Final = frozenset((204, 304))

KEEP_ALIVE: Final = 75.0
"""Seconds that a connection may stay idle."""
CROWDED_KEEP_ALIVE: Final = 5.0
"""The same while others find no room."""


@dataclass(slots=True, eq=False)
class Clients:
    """What all connections of clients share."""

    handle: Callable[[Request, "ClientConnection"], Awaitable[None]]
    """Answers a request."""
    descriptors: Descriptors
    max_head: int
    """Bytes."""
    max_body: int
    on_leave: Callable[[], None] = lambda: None
    """Called when a descriptor is free again."""
    leaving: bool = False
    """The router is about to end: each connection ends with its next answer, so that its client asks elsewhere."""
    open: "set[ClientConnection]" = field(default_factory=set)
    idle: "dict[ClientConnection, float]" = field(default_factory=dict)
    """Those that are answered nothing now, and since when; in that order."""

    def close_idle(self, now: float) -> None:
        """Close those that were idle for too long."""
        latest = now - (CROWDED_KEEP_ALIVE if self.descriptors.crowded else KEEP_ALIVE)
        for connection, since in list(self.idle.items()):
            if since > latest:
                break
            connection.close()


class ClientConnection(asyncio.Protocol):
    """Who answers calls `begin`, then `write` any number of times, then `end`; or just `answer`."""

    __slots__ = ("_chunked", "_clients", "_complete", "_continue", "_head", "_loop", "_mute", "_parser", "_place",
                 "_queue", "_request", "_task", "_transport", "_writable", "_write_paused", "answer_began",
                 "late", "left")  # fmt: skip

    def __init__(self, clients: Clients, place: Place) -> None:
        self._clients = clients
        self._place = place
        self.late = clients.leaving
        """Came when the router was leaving already."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(self._deliver, self._expect, max_head=clients.max_head, max_body=clients.max_body)
        self._request: Request | None = None
        """That is being answered, by `_task`."""
        self._task: asyncio.Task[None] | None = None
        self._queue: list[Request] = []
        self._continue = False
        """The client waits to be told to send its body."""
        self._head = b""
        """Goes out with the first bytes behind it: a write is a system call."""
        self._chunked = self._mute = self._complete = False
        self.answer_began = False
        self._write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self.left = False

    @property
    def in_anteroom(self) -> bool:
        """Whether it was let in only to be told that there is no room."""
        return self._place is Place.ANTEROOM

    # What who answers calls

    def begin(self, status: int, headers: Headers) -> None:
        """Without a content-length among the headers, the body's end is told as the client's version knows it."""
        assert self._request is not None
        request = self._request
        self.answer_began = True
        parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status]
        self._mute = request.method == b"HEAD" or status in _WITHOUT_BODY
        self._chunked = not self._mute
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._chunked = False
        if request.http_1_0:
            request.keep_alive = self._chunked = False
        if self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        if not request.keep_alive or self.in_anteroom or self._clients.leaving:
            request.keep_alive = False
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def write(self, piece: bytes) -> bool:
        """Says False where the client does not keep up: then wait until it is `drained`."""
        if self._mute or not piece:
            piece = b""
        elif self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._send(piece)
        return not self._write_paused

    def relay(self, piece: bytes) -> bool:
        """Write a further piece if the client keeps up; where it does not, say False and do nothing."""
        if self._write_paused:
            return False
        assert self._transport is not None
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
        return True

    def end(self, piece: bytes = b"") -> None:
        """With the last piece of the body."""
        self._complete = True
        if self._mute:
            piece = b""
        elif self._chunked:
            piece = b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece) if piece else b"0\r\n\r\n"
        self._send(piece)

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.end(body)

    async def drained(self) -> None:
        """Wait until the client has read most of what was written."""
        while self._write_paused:
            self._writable = self._loop.create_future()
            await self._writable

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._transport.write(data)

    # What the parser calls

    def _deliver(self, request: Request) -> None:
        self._continue = False
        if self._task is None:
            self._start(request)
        else:
            self._queue.append(request)
            # A client that is not read from cannot be seen to leave, but it shall not fill the memory with requests.
            if len(self._queue) == _MOST_QUEUED or sum(len(each.body) for each in self._queue) > _MOST_QUEUED_BYTES:
                self._read(False)

    def _expect(self) -> None:
        self._continue = True
        if self._task is None:
            self._tell_to_continue()

    # From one request to the next

    def _start(self, request: Request) -> None:
        self._clients.idle.pop(self, None)
        self._request = request
        self._complete = self.answer_began = False
        self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            await self._clients.handle(request, self)
        finally:
            self._task = self._request = None
            if not self.left:
                self._go_on(request)

    def _go_on(self, request: Request) -> None:
        if not (self._complete and request.keep_alive):
            # An answer that is not whole is cut off, which is how a client sees that.
            self.close()
        elif self._queue:
            self._start(self._queue.pop(0))
        else:
            self._clients.idle[self] = time.monotonic()
            self._read(True)
            if self._continue:
                self._tell_to_continue()

    def _tell_to_continue(self) -> None:
        self._continue = False
        self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read(self, on: bool) -> None:
        assert self._transport is not None
        if on and not self._transport.is_reading():
            self._transport.resume_reading()
        elif not on and self._transport.is_reading():
            self._transport.pause_reading()

    def close(self) -> None:
        """After what was written."""
        assert self._transport is not None
        self._transport.close()

    def abort(self) -> None:
        """At once."""
        assert self._transport is not None
        self._transport.abort()

    @property
    def answering(self) -> bool:
        return self._task is not None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._clients.open.add(self)
        self._clients.idle[self] = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        if self._task is None:
            self._clients.idle.pop(self, None)
            self._clients.idle[self] = time.monotonic()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.left = True
        self._parser.close()
        self._queue.clear()
        if self._task is not None:
            # A task that has not begun yet shall still begin, so that its request is counted.
            self._loop.call_soon(self._task.cancel)
        clients = self._clients
        clients.open.discard(self)
        clients.idle.pop(self, None)
        clients.descriptors.leave(self._place)
        clients.on_leave()
