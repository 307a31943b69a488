"""A pool without sockets: its connections are wires, and the test is the engine at their other end, and the clock."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from headwater.http.descriptors import Descriptors
from headwater_router.sends import Sends
from headwater_router.upstream.connection import Connection
from headwater_router.upstream.pool import Pool

T = TypeVar("T")

REQUEST = b"POST / HTTP/1.1\r\nhost: engine\r\n\r\n"


class Wire(asyncio.Transport):
    """What a connection writes to, and the engine's end of it."""

    def __init__(self, protocol: Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.protocol = protocol
        self.written: list[bytes] = []
        """Requests."""
        self.outbox = b""
        """What the engine has still to send."""
        self.open = True
        self.was_reset = False
        self.reading = True
        self.unsent = 0
        """Bytes that the engine did not take yet."""
        self._loop = loop
        self._unread: list[bytes] = []

    # For the connection

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def abort(self) -> None:
        self._lose(None)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert self.open
        self.reading = False

    def resume_reading(self) -> None:
        assert self.open
        self.reading = True
        unread, self._unread = self._unread, []
        for data in unread:
            self._loop.call_soon(self.send, data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return socket.socket()

    # For the engine

    def send(self, data: bytes) -> None:
        """In one segment."""
        if not self.reading:
            self._unread.append(data)
        elif self.open:
            self.protocol.data_received(data)

    def end(self) -> None:
        """As a process ends a connection that it has done with."""
        if self.open and self.reading:
            self.protocol.eof_received()
            self._lose(None)

    def reset(self) -> None:
        """As the system ends those of a process that died."""
        self.was_reset = self.open
        self._lose(ConnectionResetError(104, "Connection reset by peer"))

    def _lose(self, error: Exception | None) -> None:
        if self.open:
            self.open = False
            self._loop.call_soon(self.protocol.connection_lost, error)


@dataclass(slots=True, eq=False)
class Wires:
    """All of them, with a loop of their own whose time stands still unless the test moves it."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    now: float = 1000.0
    all: list[Wire] = field(default_factory=list)
    sends: Sends = field(default_factory=Sends)
    """Of the request that was asked last, unless the test gave it its own."""
    descriptors: Descriptors = field(default_factory=lambda: Descriptors(20_000))
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        self.loop.time = lambda: self.now  # type: ignore[method-assign]
        self.loop.create_connection = self._connect  # type: ignore[method-assign, assignment]
        self.pool = Pool("engine", 80, 5.0, self.descriptors)

    async def _connect(self, protocol: Callable[[], Connection], *where: Any, **how: Any) -> tuple[Wire, Connection]:
        connection = protocol()
        wire = Wire(connection, self.loop)
        self.all.append(wire)
        connection.connection_made(wire)
        return wire, connection

    def do(self, what: Callable[..., T], *args: Any) -> T:
        """Call it in the loop, and let everything happen that it leads to."""

        async def call() -> T:
            result = what(*args)
            for _ in range(8):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(call())

    def start(self, coroutine: Awaitable[T]) -> "asyncio.Task[T]":
        return self.do(lambda: asyncio.ensure_future(coroutine))

    def ask(
        self, request: bytes = REQUEST, patience: float = 30.0, stall: float = 10.0, sends: Sends | None = None
    ) -> "asyncio.Task[Connection]":
        """`patience`, `stall`: seconds. `sends`: of the request, if it was sent before."""
        self.sends = sends or Sends()
        return self.start(self.pool.ask(request, b"", self.now + patience, stall, self.sends))

    def send(self, data: bytes, wire: int = -1) -> None:
        self.do(self.all[wire].send, data)

    def read(self, asked: "asyncio.Task[Connection]") -> bytes:
        """What is there of the answer, or the error that is there instead."""
        reading = self.start(asked.result().read())
        assert reading.done()
        return reading.result()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(lambda: None)

    @property
    def kept(self) -> int:
        return len(self.pool._idle)

    def close(self) -> None:
        """Nothing may be left."""
        self.do(self.pool.close)
        assert not self.pool._open and not self.pool._idle and not self.descriptors._kept
        assert not any(wire.open for wire in self.all)
        self.loop.close()
