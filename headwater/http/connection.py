"""A client's connection: requests are answered one after the other, in the order in which they came.

A client that leaves takes the task down that answers it, at once and wherever that task is waiting. One that takes
forever to send, or to read, is let go of: see clients.py for how long it may take.
"""

import asyncio
import time
from typing import Final

from headwater.http.bodies import out_of_memory
from headwater.http.clients import (
    ANSWERING,
    CLOSED,
    CLOSING,
    IDLE,
    LEAST_OF_BODY,
    LEAST_OF_TURN,
    NEXT,
    PATIENCE,
    READING_BODY,
    READING_HEAD,
    TURN_PATIENCE,
    WAITING,
    Clients,
    State,
    too_many_connections,
)
from headwater.http.descriptors import Place
from headwater.http.parser import RequestParser, Stage
from headwater.http.request import Admission, Head, Request
from headwater.http.seats import Seat
from headwater.http.writer import AnswerWriter
from headwater.openai.errors import RequestTimeoutError

_MOST_QUEUED: Final = 16
"""Requests sent without waiting for the answers to those before."""
_MOST_AHEAD: Final = 256 * 1024
"""Bytes that are read while a request is being answered."""
_READING: Final = {Stage.BETWEEN: IDLE, Stage.HEAD: READING_HEAD, Stage.BODY: READING_BODY}


class ClientConnection(AnswerWriter):
    """Reads requests, and has each answered by a task of its own."""

    __slots__ = ("_continue", "_parser", "_queue", "_received", "_seat", "_task", "late", "state")

    def __init__(self, clients: Clients, seat: Seat) -> None:
        super().__init__(clients, last_answer=seat.place is Place.ANTEROOM)
        self._seat = seat
        self.late = clients.leaving
        """Came when the server was leaving already."""
        self._parser = RequestParser(
            self._deliver,
            self._expect,
            max_head=clients.max_head,
            max_body=clients.max_body,
            bodies=clients.bodies,
            admit=self._admit if self.in_anteroom or clients.cors is not None else clients.admit,
            client=seat.client,
        )
        self.state = IDLE
        self._received = 0
        """Bytes since the last answer began, or since they were last looked at."""
        self._task: asyncio.Task[None] | None = None
        """Answers `_request`."""
        self._queue: list[Request] = []
        self._continue = False
        """The client waits to be told to send its body."""

    @property
    def in_anteroom(self) -> bool:
        """Whether it was let in only to be told that there is no room."""
        return self._seat.place is Place.ANTEROOM

    @property
    def left(self) -> bool:
        """The client is gone."""
        return self.state is CLOSED

    @property
    def answering(self) -> bool:
        """Whether there is an answer that is not written whole."""
        return self._task is not None and not self._complete

    # What the parser calls

    def _admit(self, head: Head) -> Admission | None:
        """Where there is more to it than who asks. Raises APIError."""
        clients = self._clients
        if self.in_anteroom and head.method not in (b"GET", b"HEAD"):
            raise too_many_connections()
        if clients.admit is None or (clients.cors is not None and clients.cors.asks_first(head)):
            return None
        return clients.admit(head)

    def _deliver(self, request: Request) -> None:
        self._continue = False
        if self._task is None:
            self._start(request)
            return
        if request.error is None and not request.hold_head():
            request.drop_body()
            request.error = out_of_memory()
        self._queue.append(request)
        # A client that is not read from cannot be seen to leave, but it shall not fill the memory with requests.
        if len(self._queue) >= _MOST_QUEUED:
            self._read(False)

    def _expect(self) -> None:
        self._continue = True
        if self._task is None:
            self._tell_to_continue()

    # From one request to the next

    def _enter(self, state: State, now: float | None = None) -> None:
        assert state in NEXT[self.state], f"a connection cannot go from {self.state} to {state}"
        since = self._clients.since
        since[self.state].pop(self, None)
        since[state][self] = time.monotonic() if now is None else now
        self.state = state
        if (bodies := self._clients.bodies).crowded and state is not READING_BODY and state is not WAITING:
            bodies.leave(self)

    def _start(self, request: Request) -> None:
        self._enter(ANSWERING)
        self._request = request
        self._complete = self.answer_began = False
        self.bytes_sent = self._received = 0
        self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        assert self._transport is not None
        cors = self._clients.cors
        try:
            if cors is not None and request.error is None and cors.asks_first(request):
                self.answer(204, cors.yes(request), b"")
            else:
                await self._clients.handle(request, self)
            if self.write_paused and request.keep_alive:
                # Who asks on and on without reading any answer would have all of them kept here.
                request.end()
                await self.drained()
        finally:
            request.end()
            self._task = self._request = None
            # It may have been aborted a moment ago, and is lost in the next one.
            if self.state is ANSWERING and not self._transport.is_closing():
                self._go_on(request)

    def _go_on(self, request: Request) -> None:
        if not self._complete:
            # It is cut off, which is how a client sees that.
            self.close()
        elif not request.keep_alive:
            if request.error is None:
                self.close()
            else:
                self._hang_up()
        elif self._queue:
            self._start(self._queue.pop(0))
        else:
            self._read(True)
            self._read_on()
            if self._continue:
                self._tell_to_continue()

    def _read_on(self) -> None:
        """Nothing is being answered: the state is what the client is sending."""
        state = _READING.get(self._parser.stage)
        if state is None:
            self._hang_up()
        elif state is not self.state:
            self._enter(state)
        if state is READING_BODY and self._must_wait:
            # All others now, too, before each of them brings a further piece.
            for connection in [*self._clients.since[READING_BODY]]:
                if connection._must_wait:
                    connection._wait_for_memory()

    # Bodies that there is no memory for yet

    @property
    def _must_wait(self) -> bool:
        return self._parser.keeps_body and self._clients.bodies.must_wait(self)

    def _wait_for_memory(self) -> None:
        self._read(False)
        self._enter(WAITING)
        self._clients.bodies.wait(self)

    def go_on(self) -> None:
        self._received = 0
        self._enter(READING_BODY)
        self._read(True)

    def look_at_turn(self, now: float) -> None:
        if now - self._clients.since[READING_BODY][self] < TURN_PATIENCE:
            return
        if self._received < LEAST_OF_TURN:
            self._wait_for_memory()
        else:
            self._received = 0
            self._enter(READING_BODY, now)

    def _tell_to_continue(self) -> None:
        self._continue = False
        self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read(self, on: bool) -> None:
        assert self._transport is not None
        if on and not self._transport.is_reading():
            self._transport.resume_reading()
        elif not on and self._transport.is_reading():
            self._transport.pause_reading()

    # The end

    def time_is_up(self, now: float) -> None:
        """It has been in its state for as long as it may."""
        match self.state:
            case State.READING_BODY if self._received >= LEAST_OF_BODY:
                self._received = 0
                self._enter(READING_BODY, now)
            case State.READING_HEAD | State.READING_BODY as state:
                self._parser.fail(
                    RequestTimeoutError(f"The request came too slowly: {PATIENCE[state]:g} seconds were not enough.")
                )
                if self._task is None:  # It has its answer already.
                    self._hang_up()
            case State.WAITING:
                self._parser.fail(out_of_memory())
            case State.IDLE:
                self.close()
            case _:
                self.abort()

    def _hang_up(self) -> None:
        """Close behind what was written, although the client may still be sending.

        A socket that is closed with bytes in it that nobody read takes back what the other side has not read yet.
        """
        assert self._transport is not None
        self._enter(CLOSING)
        if not self._transport.is_closing():
            self._read(True)
            self._transport.write_eof()

    def close(self) -> None:
        """After what was written."""
        assert self._transport is not None
        if self.state is not CLOSING:
            self._enter(CLOSING)
        self._transport.close()

    def abort(self) -> None:
        """At once."""
        assert self._transport is not None
        self._transport.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.left:  # It was given up before it began.
            self.abort()
            return
        clients, now = self._clients, time.monotonic()
        clients.open.add(self)
        clients.since[IDLE][self] = now
        if self.in_anteroom:
            clients.anteroom[self] = now

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._parser.feed(data)
        if self._task is not None:
            if self._received > _MOST_AHEAD:
                self._read(False)
        elif self.state is not CLOSING:
            self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_back()

    def give_up(self) -> None:
        """It failed before it began."""
        self._give_back()
        if self._transport is not None:
            self.abort()

    def _give_back(self) -> None:
        """All that it has; once."""
        if self.left:
            return
        clients = self._clients
        clients.open.discard(self)
        for filed in (clients.since[self.state], clients.unread, clients.anteroom):
            filed.pop(self, None)
        self.state = CLOSED
        clients.bodies.leave(self)
        self._parser.close()
        for request in self._queue:
            request.end()
        self._queue.clear()
        if self._task is not None:
            # A task that has not begun yet shall still begin, so that its request is counted.
            self._loop.call_soon(self._task.cancel)
        clients.seats.give(self._seat)
        clients.on_leave()
