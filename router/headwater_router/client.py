"""A lean HTTP/1.1 client for the token path and the probes: connections that are kept, answers that stream through.

A general client spends most of its CPU in layers that a router has no use for. What is here is what forwarding needs:
send prepared bytes, parse the answer's head, hand its body on as it comes, hold the engine back when the client is
slow, and close at once when the client leaves. How many connections there may be is for `descriptors` to say.
"""

import asyncio
import contextlib
import errno
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import httptools

from headwater_router.descriptors import Descriptors

Headers = list[tuple[bytes, bytes]]

_HIGH_WATER: Final = 256 * 1024
"""Bytes of an answer held for a slow client before the engine is held back."""


_SMALL: Final = 64 * 1024


class UpstreamError(Exception):
    """No answer, or not a whole one."""


class ConnectRefusedError(UpstreamError):
    """Nobody listens there."""


class ConnectTimeoutError(UpstreamError):
    """There was no connection in time; somebody may still be there, only too busy."""


class OwnLimitError(UpstreamError):
    """This process can open no further connection, which is no fault of the endpoint's."""


class ConnectionLostError(UpstreamError):
    """The connection ended before the answer did."""


class AnswerTimeoutError(UpstreamError):
    """The first byte of the answer's body did not come in time."""


class MalformedAnswerError(UpstreamError):
    """What came is not HTTP."""


class Connection(asyncio.Protocol):
    """One connection, and on it one answer at a time. The httptools parser calls the `on_` methods."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.answers = 0
        """Answers that came over it whole."""
        self.status = 0
        self.headers: Headers = []
        self._head_received = False
        self._keep_alive = False
        self._complete = True
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._relay: Callable[[bytes], bool] | None = None
        self._paused = False
        self._error: UpstreamError | None = None
        self._deadline: float | None = None
        """For the first byte of the body, in the loop's time; None when it has come."""
        self._timer: asyncio.TimerHandle | None = None
        """Goes off at the deadline of this request or of one before: to start one for each costs more than to look."""
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)

    # What the gateway calls

    async def begin(self, request: bytes, body: bytes, patience: float) -> None:
        """Send a request and wait for the head of its answer; the connection is closed if there is none.

        `patience`: seconds until the first byte of the answer's body, which `read` may still have to wait for. Raises
        UpstreamError.
        """
        self.headers = []
        self._head_received = self._complete = False
        try:
            self._send(request, body)
            self._set_deadline(patience)
            while not self._head_received:
                if self._error is not None:
                    raise self._error
                await self._wait()
        except BaseException:
            self.close()
            raise

    def _send(self, request: bytes, body: bytes) -> None:
        if self._error is not None or self._transport is None:
            raise self._error or ConnectionLostError("the endpoint closed the connection")
        if len(body) <= _SMALL:
            self._transport.write(request + body)  # cheaper than two buffers
        else:
            self._transport.writelines((request, body))

    async def read(self, relay: Callable[[bytes], bool] | None = None) -> bytes:
        """All of the body that is there, after waiting for some; empty at its end. Raises UpstreamError.

        `relay` gets each piece that comes while this waits, at once, and says whether it took it. Those are not
        returned: waking a task for each token would be half of what a token costs.
        """
        while not self._chunks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            self._relay = relay
            try:
                await self._wait()
            finally:
                self._relay = None
        body = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return body

    @property
    def exhausted(self) -> bool:
        """Whether all of the answer has come and was read."""
        return self._complete and not self._chunks

    @property
    def answer_began(self) -> bool:
        return self._head_received

    def release(self) -> None:
        """The answer is read, or no longer wanted: keep the connection for the next one, or close it."""
        if self._complete and self._error is None and self._keep_alive:
            self.answers += 1
            self._pool.put(self)
        else:
            self.close()

    def close(self) -> None:
        """At once, without waiting for what was written: the engine shall see that the client is gone."""
        self._pool.discard(self)
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None:
            self._error = error
        self.close()
        self._wake()

    def _set_deadline(self, patience: float) -> None:
        self._deadline = self._loop.time() + patience
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._deadline > self._loop.time():
            self._timer = self._loop.call_at(self._deadline, self._look_at_deadline)
        else:
            self._fail(AnswerTimeoutError("the endpoint did not begin to answer in time"))

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self._fail(MalformedAnswerError("the endpoint sent bytes that nobody asked for"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(MalformedAnswerError(f"the endpoint's answer is not HTTP: {error}"))
            return
        if self._held > _HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._relay is None or self._chunks or self._complete:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._error is None:
            # An answer without a length ends with its connection.
            if self._head_received and not self._complete and self._ends_with_connection():
                self._complete = True
            self._error = ConnectionLostError("the endpoint closed the connection")
        self._transport = None
        # They keep one another alive otherwise.
        del self._parser
        self._wake()

    def _ends_with_connection(self) -> bool:
        names = {name for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        # Asked for now: once the message is complete, the parser has forgotten.
        self._keep_alive = self._parser.should_keep_alive()
        if status >= 200:
            self.status = status
            self._head_received = True
        else:
            self.headers = []

    def on_body(self, body: bytes) -> None:
        self._deadline = None
        if self._relay is not None and not self._chunks and self._relay(body):
            return
        self._chunks.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        if self._head_received:
            self._complete = True
            self._deadline = None


_OWN_LIMITS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))


class Pool:
    """Connections to one address; an idle one is taken before a new one is made."""

    def __init__(self, host: str, port: int, connect_timeout: float, descriptors: Descriptors) -> None:
        self._host = host
        self._port = port
        self._connect_timeout = connect_timeout
        self._descriptors = descriptors
        self._idle: dict[Connection, None] = {}

    async def ask(self, request: bytes, body: bytes, patience: float) -> Connection:
        """Send a request; the connection that is returned has the head of its answer. Raises UpstreamError.

        A kept connection may have been closed by the other side a moment ago. If it is lost before anything of an
        answer came, the request is sent once more over a new one.
        """
        connection = self._take()
        if connection is not None:
            try:
                await connection.begin(request, body, patience)
                return connection
            except ConnectionLostError:
                pass
        connection = await self._connect()
        await connection.begin(request, body, patience)
        return connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        self._descriptors.make_room()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
        except TimeoutError:
            raise ConnectTimeoutError("the endpoint did not accept a connection in time") from None
        except OSError as error:
            if error.errno in _OWN_LIMITS:
                raise OwnLimitError(f"the router can open no further connection: {error.strerror}") from None
            raise ConnectRefusedError(f"the endpoint cannot be reached: {error.strerror or error}") from None
        return connection

    def _take(self) -> Connection | None:
        # The one that was used last is the least likely to have been closed meanwhile.
        if not self._idle:
            return None
        connection, _ = self._idle.popitem()
        self._descriptors.unkeep(connection)
        return connection

    def put(self, connection: Connection) -> None:
        self._idle[connection] = None
        self._descriptors.keep(connection, asyncio.get_running_loop().time())

    def discard(self, connection: Connection) -> None:
        if connection in self._idle:
            del self._idle[connection]
            self._descriptors.unkeep(connection)

    def close(self) -> None:
        """Close the idle ones; those in use close when their answers end."""
        while (connection := self._take()) is not None:
            with contextlib.suppress(Exception):
                connection.close()
