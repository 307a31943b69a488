"""Listens, lets clients in while there are descriptors for them, and ends without haste.

A system that is asked to accept one connection too many says so again and again, and a loop that asks again and again
does nothing else. So the server stops to accept before, and goes on when a client leaves; until then newcomers wait
where the system keeps them.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog

from headwater.http.bodies import BodyBudget
from headwater.http.clients import Clients
from headwater.http.connection import ClientConnection
from headwater.http.cors import Cors
from headwater.http.descriptors import Descriptors
from headwater.http.parser import Admit
from headwater.http.request import Request
from headwater.http.seats import Seat, Seats
from headwater.http.sockets import keep_alive

log = structlog.get_logger(__name__)

_BACKLOG: Final = 8192
_AT_ONCE: Final = 64
"""Connections accepted before those that are there get their turn."""
_TICK: Final = 1.0
"""Seconds between two looks at connections whose time may be up."""
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
        bodies: BodyBudget,
        most_of_an_address: int | None = None,
        admit: Admit | None = None,
        cors: Cors | None = None,
    ) -> None:
        """Limits are in bytes, `most_of_an_address` in connections: None lets one have most of what there is room for.

        `admit`: called with each request's head; None lets everybody in.
        """
        self._loop = asyncio.get_running_loop()
        self._descriptors = descriptors
        self._seats = Seats(descriptors, most_of_an_address)
        self.clients = Clients(
            handle, descriptors, self._seats, bodies, max_head, max_body, admit, cors, on_leave=self._on_leave
        )
        self._listeners: list[socket.socket] = []
        self.paused = False
        self._all_left = asyncio.Event()
        self._entering: dict[asyncio.Task[Any], None] = {}
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

    @property
    def port(self) -> int:
        """That it listens on."""
        return int(self._listeners[0].getsockname()[1])

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
        for task in self._entering:
            task.cancel()
        for connection in list(self.clients.open):
            if connection.answering:
                connection.abort()
            else:
                connection.close()
        if self.clients.open:
            self._all_left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_BYTES):
                    await self._all_left.wait()
        for connection in list(self.clients.open):
            connection.abort()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            place = self._descriptors.admit()
            if place is None:
                self._pause()
                return
            try:
                client, address = listener.accept()
            except OSError as error:
                self._descriptors.leave(place)
                if not isinstance(error, (BlockingIOError, ConnectionError)):
                    log.warning("cannot accept connections for a moment", reason=error.strerror)
                    self._pause()
                return
            seat = self._seats.take(place, address[0])
            if seat is None:
                client.close()
                continue
            self._let_in(client, seat)

    def _let_in(self, client: socket.socket, seat: Seat) -> None:
        client.setblocking(False)
        keep_alive(client)
        connection = ClientConnection(self.clients, seat)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, client))
        self._entering[task] = None
        task.add_done_callback(partial(self._entered, client, connection))

    def _entered(self, client: socket.socket, connection: ClientConnection, task: asyncio.Task[Any]) -> None:
        """Not within a coroutine, which a task that is cancelled at once never begins."""
        del self._entering[task]
        if task.cancelled() or (error := task.exception()) is not None:
            connection.give_up()
            client.close()
            if not task.cancelled():
                log.warning("a connection failed before it began", reason=str(error))

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
        self._timer = self._loop.call_later(_TICK, self._tick)
        self.clients.tick(time.monotonic())
        self._descriptors.close_unused(self._loop.time())
        self._resume()
