"""One connection to an endpoint, and on it one answer at a time.

`state` says what it is doing. Whatever comes that no request asked for ends the connection.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import httptools

from headwater.http.headers import OWN_TO_A_CONNECTION, Headers, named_by_connection
from headwater.http.sockets import keep_alive
from headwater_router.sends import Sends
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    MalformedAnswerError,
    StaleConnectionError,
    StalledError,
    UnreachableError,
    UpstreamError,
)
from headwater_router.upstream.head import (
    MOST_HEADERS,
    MOST_WITHOUT_BODY,
    check_coding,
    check_informational,
    check_size,
    malformed,
    too_large,
)
from headwater_router.upstream.state import BODY, CLOSED, COMPLETE, ENDED, HEAD, IDLE, NEXT, SENT, State

if TYPE_CHECKING:
    from headwater_router.upstream.pool import Pool

_HIGH_WATER: Final = 256 * 1024
"""Bytes of an answer held for a slow client before the engine is held back."""
_SMALL: Final = 64 * 1024
"""Bytes of a body that is copied behind its head: cheaper than two buffers."""
_STALE_SECONDS: Final = 1.0
"""After which it was the request that was lost, not a kept connection that had been closed before it."""
_OPEN: Final = (BODY, SENT, HEAD)
"""Bytes are expected."""


class Connection(asyncio.Protocol):
    """The pool begins a request on it; its owner reads the answer, and releases it."""

    __slots__ = ("_chunks", "_deadline", "_error", "_held", "_informational", "_loop", "_own", "_parser", "_paused",
                 "_pool", "_relay", "_resumed", "_reused", "_sends", "_sent_at", "_stall", "_timer", "_transport",
                 "_waiter", "_without_body", "ended_by_close", "headers", "last_heard", "on_body", "state",
                 "status")  # fmt: skip

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._chunks: deque[bytes] = deque()
        self.on_body = self._chunks.append
        """Called by the parser, without a function of ours in between: this is the path of each token."""
        self._parser = httptools.HttpResponseParser(self)
        self.state = IDLE
        self.status = 0
        self._own: Headers = []
        self.headers: Headers = []
        """Of the answer, without those that are meant for this connection alone, which are in `_own`."""
        self.ended_by_close = False
        """The answer told no length: whether it is whole, only its content can say."""
        self.last_heard = -math.inf
        """When the last bytes came, in the loop's time."""
        self._reused = False
        self._sends: Sends
        """Of the request that was sent last."""
        self._informational = 0
        self._without_body = 0
        """Bytes that came since the last one of a body."""
        self._held = 0
        """About so many bytes of the body are unread."""
        self._relay: Callable[[bytes], bool] | None = None
        self._paused = False
        self._error: UpstreamError
        """Why it is closed."""
        self._waiter: asyncio.Future[None] | None = None
        self._sent_at = self._deadline = self._stall = 0.0
        self._resumed = -math.inf
        """When we went on to read after a pause of our own."""
        self._timer: asyncio.TimerHandle | None = None
        """Goes off now and then to look for silence: to start one for each request or piece costs more."""

    def _become(self, state: State) -> None:
        """Raises RuntimeError where there is no way from here to there: a mistake of ours."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a connection that is {self.state} cannot become {state}")
        self.state = state

    # What the pool calls

    async def begin(self, request: bytes, body: bytes, deadline: float, stall: float, sends: Sends) -> None:
        """Send a request and wait for the head of its answer; the connection is closed if there is none.

        `deadline`: for the first byte of the answer's body, which `read` may still have to wait for, in the loop's
        time. `stall`: seconds, above 0, that may pass between two later pieces. `sends`: of this request, counted here.
        Raises UpstreamError.
        """
        if self.state is CLOSED:
            raise self._error
        self._become(SENT)
        self.headers, self._own = [], []
        self._sends, self._deadline, self._stall = sends, deadline, stall
        self.ended_by_close = False
        self._informational = self._without_body = 0
        try:
            self._send(request, body)
            while self.state is SENT:
                await self._wait()
            if self.state is CLOSED:
                raise self._error
        except BaseException:
            self.close()
            raise

    def _send(self, request: bytes, body: bytes) -> None:
        assert self._transport is not None
        self._sent_at = self._loop.time()
        if self._sent_at >= self._deadline:
            self.fail(AnswerTimeoutError("there was no time left for the endpoint to answer"))
            return
        if len(body) <= _SMALL:
            self._transport.write(request + body)
        else:
            self._transport.writelines((request, body))
        self._sends.sent()
        self._look_at(min(self._deadline, self._sent_at + self._stall))

    def fail(self, error: UpstreamError) -> None:
        """Nothing more comes. What came can be read; behind it, unless that is a whole answer, is this error."""
        if self.state is COMPLETE:
            self._hang_up(ENDED)
        elif self.state not in (ENDED, CLOSED):
            if self.state in _OPEN and isinstance(error, ConnectionLostError):
                self._sends.lost()
            self._error = error
            self._hang_up(CLOSED)

    # What the owner calls

    async def read(self, relay: Callable[[bytes], bool] | None = None) -> bytes:
        """All of the body that is there, after waiting for some; empty at its end. Raises UpstreamError.

        `relay` gets each piece that comes while this waits, at once, and says whether it took it. Those are not
        returned: waking a task for each token would be half of what a token costs. What comes together with the
        answer's end is returned.
        """
        while not self._chunks:
            if self.state not in (BODY, HEAD):
                return self._end()
            self._relay = relay
            try:
                await self._wait()
            finally:
                self._relay = None
        body = self._take()
        self._drop()
        return body

    def _take(self) -> bytes:
        """All that is unread, in one piece."""
        if len(self._chunks) == 1:
            return self._chunks.popleft()
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body

    def _end(self) -> bytes:
        if self.state is CLOSED:
            raise self._error
        if self.state not in (COMPLETE, ENDED):
            raise RuntimeError("there is no answer to read")
        return b""

    @property
    def exhausted(self) -> bool:
        """Whether all of the answer has come and was read."""
        return not self._chunks and (self.state is COMPLETE or self.state is ENDED)

    def release(self) -> None:
        """The answer is read, or no longer wanted: keep the connection for the next one, or close it.

        What is unread of an answer that is complete is dropped. What is still to come of another would be taken for
        the next one's.
        """
        if self.state in (COMPLETE, IDLE):  # Who releases twice has not got it any more, and is told so.
            self._become(IDLE)
            self._drop()
            self._reused = True
            self._pool.put(self)
        else:
            self.close()

    def close(self) -> None:
        """At once, without waiting for what was written: the engine shall see that the client is gone."""
        if self.state is not CLOSED:
            self._error = ConnectionLostError("the router closed the connection")
            self._hang_up(CLOSED)
        self._chunks.clear()

    def _drop(self) -> None:
        self._chunks.clear()
        self._held = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._resumed = self._loop.time()
            self._transport.resume_reading()

    def _hang_up(self, state: State) -> None:
        self._become(state)
        self._pool.discard(self)
        self._paused = False
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Silence

    def _look_at(self, when: float) -> None:
        if self._timer is not None and self._timer.when() > when:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Is there still time? The next look is never later than a piece that comes now could begin to be missed."""
        self._timer = None
        if self.state not in _OPEN:
            return
        now = self._loop.time()
        if self.state is not BODY:
            due = self._deadline
        elif self._paused:
            due = now + self._stall
        else:
            due = max(self.last_heard, self._resumed) + self._stall
        if due > now:
            self._look_at(min(due, now + self._stall))
        elif self.state is BODY:
            self.fail(StalledError(f"nothing more of the endpoint's answer came for {self._stall:g} s"))
        else:
            self.fail(AnswerTimeoutError("the endpoint did not begin to answer in time"))

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._pool.add(self)
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self.last_heard = self._loop.time()
        if self.state not in _OPEN:
            self.fail(MalformedAnswerError("the endpoint sent bytes that nobody asked for"))
            return
        self._without_body += len(data)
        chunks = self._chunks
        unread = len(chunks)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(malformed(error))
            return
        if len(chunks) == unread:
            self._look_at_head()
            return
        self._without_body = 0
        if self.state is HEAD:
            self._become(BODY)
        elif self.state is SENT:
            self.fail(_body_of_none())
            return
        if self.state is BODY and not unread and (relay := self._relay) is not None:
            piece = self._take()
            if relay(piece):
                return
            chunks.append(piece)
        self._hold(len(data))

    def _look_at_head(self) -> None:
        """Or at whatever else came, and was no body."""
        if self._without_body > MOST_WITHOUT_BODY and self.state in _OPEN:
            self.fail(too_large())
        elif self.state is not BODY:
            self._wake()

    def _hold(self, size: int) -> None:
        """Until it is read."""
        self._held += size
        if self._held > _HIGH_WATER and not self._paused and self.state is BODY:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        if self.state in (HEAD, BODY) and not self._tells_length():
            self.ended_by_close = True
            self._hang_up(ENDED)
        else:
            self.fail(self._loss())

    def _tells_length(self) -> bool:
        names = {name for name, _ in (*self.headers, *self._own)}
        return b"content-length" in names or b"transfer-encoding" in names

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self.fail(self._loss())
        # They keep one another alive otherwise.
        del self._parser

    def _loss(self) -> UpstreamError:
        if self.state is IDLE:
            return UnreachableError("the endpoint closed the connection before anything was sent over it")
        nothing_came = self.state is SENT and not self._without_body
        if nothing_came and self._reused and self._loop.time() < self._sent_at + _STALE_SECONDS:
            return StaleConnectionError("the endpoint had closed the connection")
        return ConnectionLostError("the endpoint closed the connection")

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.state is not SENT:
            raise MalformedAnswerError("the endpoint sent more than its answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.state is not SENT:
            return  # a trailer
        name = name.lower()
        headers = self._own if name in OWN_TO_A_CONNECTION else self.headers
        if len(headers) == MOST_HEADERS:
            raise MalformedAnswerError(f"the endpoint's answer has more than {MOST_HEADERS} headers")
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._skip_informational(status)
            return
        if not 200 <= status < 600:
            raise MalformedAnswerError(f"the endpoint answered with status {status}")
        if self._without_body > MOST_WITHOUT_BODY:
            check_size(self.headers + self._own)
        if self._own:
            check_coding(self._own)
            if names := named_by_connection(self._own):
                self.headers = [each for each in self.headers if each[0] not in names]
        self.status = status
        self._become(HEAD)

    def _skip_informational(self, status: int) -> None:
        self._informational += 1
        check_informational(status, self._informational)
        self.headers, self._own = [], []

    def on_message_complete(self) -> None:
        if self.state is SENT:  # one of 1xx
            if self._chunks:
                raise _body_of_none()
            return
        # What is still to be sent of a request that was answered before its end could be taken for the next one.
        if self._parser.should_keep_alive() and self._transport and not self._transport.get_write_buffer_size():
            self._become(COMPLETE)
        else:
            self._hang_up(ENDED)


def _body_of_none() -> MalformedAnswerError:
    return MalformedAnswerError("the endpoint sent a body with an interim answer")
