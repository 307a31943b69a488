"""Listens, lets clients in while there are descriptors for them, closes the idle, and ends without haste.

A system that is asked to accept one connection too many says so again and again, and a loop that asks again and again
does nothing else. So the router stops to accept before, and goes on when a client leaves; until then newcomers wait
where the system keeps them.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from headwater_router.descriptors import Descriptors, Place
from headwater_router.gateway.connection import ClientConnection, Clients
from headwater_router.gateway.request import Request

log = structlog.get_logger(__name__)

_BACKLOG: Final = 8192
_AT_ONCE: Final = 64
"""Connections accepted before those that are there get their turn."""
_TICK: Final = 1.0
"""Seconds between two looks at idle connections."""
_LAST_BYTES: Final = 2.0
"""Seconds that clients get to read what was written before the end."""


class Server:
    """Build it inside a running loop."""

    def __init__(
        self,
        handle: Callable[[Request, ClientConnection], Awaitable[None]],
        descriptors: Descriptors,
        *,
        max_head: int,
        max_body: int,
    ) -> None:
        """Limits are in bytes."""
        self._loop = asyncio.get_running_loop()
        self._descriptors = descriptors
        self.clients = Clients(handle, descriptors, max_head, max_body, on_leave=self._on_leave)
        self._listeners: list[socket.socket] = []
        self.paused = False
        self._all_left = asyncio.Event()
        self._entering: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> None:
        """At each address that the host stands for. Raises OSError."""
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
        listeners: list[socket.socket] = []
        try:
            for family, address in addresses:
                listeners.append(socket.create_server(address, family=family, backlog=_BACKLOG))
        except OSError:
            for listener in listeners:
                listener.close()
            raise
        self.start(*listeners)

    def start(self, *listeners: socket.socket) -> None:
        """Accept from these, which are closed in the end."""
        for listener in listeners:
            listener.setblocking(False)
            self._listeners.append(listener)
            self._loop.add_reader(listener, self._accept, listener)
        self._tick()

    def leave(self) -> None:
        """Have each client that is here go with its next answer."""
        self.clients.leaving = True

    def stop_listening(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        if self._timer is not None:
            self._timer.cancel()

    async def close(self) -> None:
        """Stop listening; answers that are not complete are cut, others get a moment to reach their clients."""
        self.stop_listening()
        for connection in list(self.clients.open):
            if connection.answering:
                connection.abort()
            else:
                connection.close()
        if self.clients.open:
            self._all_left.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_left.wait(), _LAST_BYTES)
        for connection in list(self.clients.open):
            connection.abort()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            place = self._descriptors.admit()
            if place is None:
                self._pause()
                return
            try:
                client, _ = listener.accept()
            except OSError as error:
                self._descriptors.leave(place)
                if not isinstance(error, (BlockingIOError, ConnectionError)):
                    log.warning("cannot accept connections for a moment", reason=error.strerror)
                    self._pause()
                return
            task = self._loop.create_task(self._enter(client, place))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    async def _enter(self, client: socket.socket, place: Place) -> None:
        client.setblocking(False)
        await self._loop.connect_accepted_socket(lambda: ClientConnection(self.clients, place), client)

    def _pause(self) -> None:
        self.paused = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _on_leave(self) -> None:
        self._resume()
        if not self.clients.open:
            self._all_left.set()

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener)

    def _tick(self) -> None:
        self.clients.close_idle(time.monotonic())
        self._descriptors.close_unused(self._loop.time())
        self._resume()
        self._timer = self._loop.call_later(_TICK, self._tick)
