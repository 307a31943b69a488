"""The bytes of one request on their way through: to the endpoint that the dispatcher chose, and the answer back.

What is decided, counted and learned is the dispatcher's. Here it is told what happens: that the head of an answer is
here, that its first content is, how it ended. Until the first content, nothing has gone to the client but comments of
our own, so another endpoint can still be asked.
"""

import asyncio
import math
import time
from functools import partial
from typing import Final

import structlog

from headwater.http.answering import Answering
from headwater.http.descriptors import Descriptors
from headwater.http.headers import Headers, is_stream
from headwater.http.replies import answer_json
from headwater.http.request import Request
from headwater.http.shapes import error_in, event_of
from headwater.openai.errors import APIError, BadRequestError
from headwater_router.dispatch.call import Call
from headwater_router.dispatch.dispatch import Dispatch
from headwater_router.dispatch.dispatcher import Dispatcher, outcome_of
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.gateway.beginning import Beginning, Fault, Kind, fault_of
from headwater_router.gateway.events import StreamReader
from headwater_router.gateway.failures import failure, lost
from headwater_router.gateway.head import RequestHead, answer_head, retry_after
from headwater_router.gateway.keepalive import KeepAlive
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.gateway.paths import Responses
from headwater_router.gateway.refusals import LONGEST, Refusal, read_refusal, refusal_of
from headwater_router.gateway.translating import LONGEST as LONGEST_TRANSLATED
from headwater_router.gateway.translating import LONGEST_RENAMED, renaming_of, translated_document, translated_events
from headwater_router.gateway.usage import UsageFinder
from headwater_router.outcome import Outcome
from headwater_router.upstream.connection import Connection
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    ConnectRefusedError,
    MalformedAnswerError,
    UpstreamError,
)
from headwater_router.upstream.pool import Pool

log = structlog.get_logger(__name__)

_BEGINNING: Final = 4096
"""Bytes of an answer in which the id of a response is looked for."""


class Forwarder:
    """What all requests share."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: RouterMetrics,
        descriptors: Descriptors,
        *,
        connect_timeout: float,
        stall_timeout: float,
        keep_alive_comments: float,
        expose_endpoint: bool,
    ) -> None:
        """Times are seconds. `keep_alive_comments`: 0 sends none. `expose_endpoint`: tell clients who answered."""
        self.dispatcher = dispatcher
        self.metrics = metrics
        self.descriptors = descriptors
        self.stall_timeout = stall_timeout
        self.keep_alive_comments = keep_alive_comments
        self.expose_endpoint = expose_endpoint
        self.responses = Responses()
        self.begun = 0
        """Requests since the start."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._connect_timeout = connect_timeout
        self._pools: dict[Endpoint, Pool] = {}

    @property
    def open_requests(self) -> int:
        return self.dispatcher.budget.open_requests

    def pool(self, endpoint: Endpoint) -> Pool:
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._pools[endpoint] = Pool(
                endpoint.host, endpoint.port, self._connect_timeout, self.descriptors, endpoint.tls
            )
        return pool

    def forget(self, endpoint: Endpoint) -> None:
        """It is gone. Running answers go on."""
        if (pool := self._pools.pop(endpoint, None)) is not None:
            pool.close()

    def last_heard(self, endpoint: Endpoint) -> float:
        """When any bytes of its answers came last, in the loop's time; -inf where none ever did."""
        pool = self._pools.get(endpoint)
        return -math.inf if pool is None else pool.last_heard

    def cut_off(self, endpoint: Endpoint) -> None:
        """End its running answers: it cannot be reached any more."""
        if (pool := self._pools.get(endpoint)) is not None:
            pool.fail_all(ConnectionLostError("the endpoint cannot be reached any more"))

    async def forward(self, request: Request, client: Answering, call: Call, head: RequestHead) -> None:
        """Answer one request. Raises APIError where it has no answer, which may have begun with comments."""
        budget = self.dispatcher.budget
        budget.open_requests += 1
        self.begun += 1
        self._idle.clear()
        passage = _Passage(self, request, client, call, head)
        try:
            await passage.run()
        finally:
            passage.stop()
            self.dispatcher.close(call, time.monotonic(), Outcome.CLIENT_LEFT if client.left else Outcome.UNSENT)
            budget.open_requests -= 1
            if not budget.open_requests:
                self._idle.set()

    async def until_idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


class _Passage:
    """The state of one request."""

    __slots__ = (
        "_call",
        "_client",
        "_head",
        "_keep_alive",
        "_passing",
        "_reader",
        "_request",
        "_rewritten",
        "_shared",
        "_stream",
    )

    def __init__(self, shared: Forwarder, request: Request, client: Answering, call: Call, head: RequestHead) -> None:
        self._shared = shared
        self._request = request
        self._client = client
        self._call = call
        self._head = head
        self._passing = False
        """Of an endpoint's answer something has gone to the client."""
        self._rewritten = False
        """It gets another length than the endpoint said."""
        self._reader: UsageFinder | StreamReader = UsageFinder()
        """Looks at all that passes of the answer."""
        self._stream: StreamReader | None = None
        """The reader, where the answer is a stream."""
        self._keep_alive: KeepAlive | None = None

    async def run(self) -> None:
        shared, call = self._shared, self._call
        if shared.keep_alive_comments and call.prompt.streamed:
            self._keep_alive = KeepAlive(self._client, shared.keep_alive_comments)
        while not await self._attempt(await shared.dispatcher.choose(call)):
            pass

    def stop(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.stop()

    async def _attempt(self, dispatch: Dispatch) -> bool:
        """Ask one endpoint. Returns whether that is the end of it; else another one may be asked. Raises APIError."""
        connection: Connection | None = None
        try:
            connection = await self._ask(dispatch)
            dispatch.answered(connection.status)
            outcome = outcome_of(connection.status, retry_after(connection.headers))
            if outcome is Outcome.ANSWERED:
                return await self._pass_answer_on(dispatch, connection)
            return await self._pass_refusal_on(dispatch, connection, outcome)
        except UpstreamError as error:
            return await self._upstream_failed(dispatch, error)
        except BadRequestError as error:
            # Nothing was sent: what the endpoint's server cannot do, that of another may.
            dispatch.ended(Outcome.UNSUPPORTED, time.monotonic(), reason=error.message)
            if await self._shared.dispatcher.may_retry(self._call, Outcome.UNSUPPORTED):
                return False
            raise
        finally:
            if connection is not None:
                connection.release()

    async def _ask(self, dispatch: Dispatch) -> Connection:
        """As `Pool.ask`; raises BadRequestError, too. What is sent is this frame's alone: else it would be in memory as
        long as the answer."""
        shared, endpoint = self._shared, dispatch.endpoint
        now = time.monotonic()
        shared.metrics.overhead.observe(now - self._call.started)
        assert self._call.deadline is not None
        deadline = asyncio.get_running_loop().time() + self._call.deadline - now
        rank = dispatch.decision.target.rank
        head, body = self._head.of(endpoint, dispatch.upstream_model, self._call.body, rank)
        return await shared.pool(endpoint).ask(head, body, deadline, shared.stall_timeout, self._call.sends)

    # What an endpoint says

    async def _pass_refusal_on(self, dispatch: Dispatch, connection: Connection, outcome: Outcome) -> bool:
        call, dispatcher = self._call, self._shared.dispatcher
        if outcome is Outcome.OVERLOADED:
            dispatch.retry_after = retry_after(connection.headers) or 0.0
        reason = f"status {connection.status}"
        if await dispatcher.may_retry(call, outcome):
            dispatch.ended(outcome, time.monotonic(), reason=reason)
            return False
        self.stop()
        longest = dispatcher.retry_after(call, time.monotonic()) if outcome is Outcome.OVERLOADED else None
        chunk = await _beginning_of(connection, await connection.read())
        refusal = read_refusal(dispatch.endpoint.backend, connection.status, chunk)
        if not self._client.answer_began and (refusal.as_it_came or not connection.exhausted):
            self._begin(dispatch, connection, longest)
            self._client.end(await self._relay_rest(connection, chunk))
        else:
            self._refuse(dispatch, connection, refusal, longest)
        dispatch.ended(outcome, time.monotonic(), reason=reason)
        return True

    async def _pass_answer_on(self, dispatch: Dispatch, connection: Connection) -> bool:
        # The head goes out with the first content, so that until then another endpoint can be tried.
        first = await connection.read()
        if is_stream(connection.headers):
            self._reader = self._stream = reader = StreamReader(self._call.path)
            if self._head.translation is not None:
                reader.rewrite(partial(translated_events, self._head.translation))
                self._rewritten = True
            elif (renaming := renaming_of(dispatch.endpoint.backend.dialect, self._call.path)) is not None:
                reader.rewrite(renaming.of_events, renaming.word)
                self._rewritten = True
            beginning = Beginning(self._call.path)
            kind = beginning.feed(first)
            if kind is Kind.NOTHING:
                first, kind = await self._until_content(connection, beginning, first)
            if kind in (Kind.NOTHING, Kind.ERROR):
                return await self._is_none(dispatch, connection, beginning.fault, first)
        else:
            if self._client.answer_began:
                raise MalformedAnswerError("it is no stream, and one had begun")
            self._reader, self._stream, kind = UsageFinder(), None, Kind.CONTENT
            if (fault := fault_of(self._call.path, first, whole=connection.exhausted)) is not None:
                if fault.tells_error:
                    first = await _beginning_of(connection, first)
                    fault = fault_of(self._call.path, first, whole=connection.exhausted) or fault
                return await self._is_none(dispatch, connection, fault, first)
            first = await self._translated(dispatch, connection, first)
        if self._call.path == "/v1/responses":
            self._shared.responses.learn(first[:_BEGINNING], dispatch.endpoint, self._call.model, self._call.key_name)
        if kind is Kind.CONTENT:
            self._first_content(dispatch)
        self._settle()
        self._begin(dispatch, connection)
        self._end(dispatch, await self._relay_rest(connection, self._reader.feed(first)))
        return True

    async def _translated(self, dispatch: Dispatch, connection: Connection, first: bytes) -> bytes:
        """What an answer that is not streamed begins with; all of it, where it is in a dialect, and not too long."""
        if (translation := self._head.translation) is not None:
            self._rewritten = True
            first = await _beginning_of(connection, first, LONGEST_TRANSLATED)
            return translated_document(translation, first) if connection.exhausted else first
        if (renaming := renaming_of(dispatch.endpoint.backend.dialect, self._call.path)) is None:
            return first
        if not connection.exhausted:  # What was thought comes last.
            first = await _beginning_of(connection, first, LONGEST_RENAMED)
        renamed = renaming.of(first) if connection.exhausted else first
        self._rewritten = renamed != first
        return renamed

    async def _until_content(self, connection: Connection, beginning: Beginning, held: bytes) -> tuple[bytes, Kind]:
        """What came before the first content, with it, and what that is; NOTHING where the stream ends before."""
        kind, pieces = Kind.NOTHING, [held]
        assert self._call.deadline is not None
        try:
            async with asyncio.timeout(max(0.0, self._call.deadline - time.monotonic())):
                while kind is Kind.NOTHING and not connection.exhausted:
                    pieces.append(await connection.read())
                    kind = beginning.feed(pieces[-1])
        except TimeoutError:
            raise AnswerTimeoutError("the endpoint did not begin to answer in time") from None
        return b"".join(pieces), kind

    async def _is_none(self, dispatch: Dispatch, connection: Connection, fault: Fault, held: bytes) -> bool:
        """What came with status 200 is no answer."""
        refusal = refusal_of(dispatch.endpoint.backend, fault.status or 502, fault.said)
        outcome = outcome_of(refusal.status, None)
        if await self._shared.dispatcher.may_retry(self._call, outcome):
            dispatch.ended(outcome, time.monotonic(), reason=fault.reason)
            return False
        if fault.tells_error:
            longest = self._shared.dispatcher.retry_after(self._call, time.monotonic())
            self._refuse(dispatch, connection, refusal, longest if outcome is Outcome.OVERLOADED else None)
        else:
            self._begin(dispatch, connection)
            self._client.end(await self._relay_rest(connection, held))
        dispatch.ended(outcome, time.monotonic(), reason=fault.reason)
        return True

    async def _upstream_failed(self, dispatch: Dispatch, error: UpstreamError) -> bool:
        """As `_attempt`, which it ends."""
        if (stream := self._stream) is not None and stream.over:
            # It had said that it is over: what became of its connection then is nobody's loss.
            self._client.end(stream.end())
            self._judge(dispatch)
            return True
        outcome, status = failure(error)
        now = time.monotonic()
        dispatch.ended(outcome, now, reason=str(error))
        if isinstance(error, ConnectRefusedError):
            # No need to wait for the next probe.
            self._shared.dispatcher.fleet.mark_dead(dispatch.endpoint, str(error))
        if not self._passing:
            if await self._shared.dispatcher.may_retry(self._call, outcome):
                return False
            raise status
        self._shared.metrics.broken_answers.labels(dispatch.endpoint.name).inc()
        if self._stream is not None:
            stalled = outcome is Outcome.STALLED
            self._break_off(status if stalled else lost("The endpoint broke off its answer."))
        # Else: returning without the rest of the body cuts the connection, which is how a client sees the loss.
        return True

    def _first_content(self, dispatch: Dispatch) -> None:
        now = time.monotonic()
        dispatch.first_token(now)
        if self._stream is not None:
            self._shared.metrics.of(self._call.model).ttft.observe(now - self._call.started)

    def _settle(self) -> None:
        """From here on the request stays where it is, and its body is no longer needed."""
        self._call.forget_body()
        self._head.forget_body()
        self._request.drop_body()

    # What the client gets

    def _begin(self, dispatch: Dispatch, connection: Connection, longest_wait: float | None = None) -> None:
        self._passing = True
        self.stop()
        if self._client.answer_began:
            return  # With comments: the status is sent.
        headers = self._answer_head(dispatch, connection, longest_wait)
        if self._head.usage_is_ours and (stream := self._stream) is not None:
            stream.hide_usage()
        if self._head.usage_is_ours or self._rewritten:
            headers = [each for each in headers if each[0] != b"content-length"]
        self._client.begin(connection.status, headers)

    def _answer_head(self, dispatch: Dispatch, connection: Connection, longest_wait: float | None) -> Headers:
        headers = answer_head(connection.headers, longest_wait)
        if self._shared.expose_endpoint:
            headers.append((b"x-headwater-endpoint", dispatch.endpoint.name.encode()))
            headers.append((b"x-headwater-decision", dispatch.decision.label.encode()))
        return headers

    def _refuse(self, dispatch: Dispatch, connection: Connection, refusal: Refusal, longest_wait: float | None) -> None:
        """Say it in OpenAI's shape: in an event, where the status is sent already."""
        self.stop()
        if self._client.answer_began:
            self._client.end(event_of(self._call.path, refusal.status, refusal.document, self._request.id))
            return
        own = (b"content-type", b"content-length", b"content-encoding", b"cache-control")
        headers = [each for each in self._answer_head(dispatch, connection, longest_wait) if each[0] not in own]
        document = error_in(self._call.path, refusal.status, refusal.document, self._request.id)
        answer_json(self._client, document, refusal.status, headers)

    async def _relay_rest(self, connection: Connection, chunk: bytes) -> bytes:
        """Pass on all but the last piece, which is returned: an answer that came at once goes out at once."""
        client = self._client
        while not connection.exhausted:
            if chunk and not client.write(chunk):
                await client.drained()
            chunk = self._reader.feed(await connection.read(self._relay))
        return chunk

    def _relay(self, chunk: bytes) -> bool:
        """Send a piece on without waiting, if the client keeps up."""
        client = self._client
        if client.write_paused:
            return False
        if chunk := self._reader.feed(chunk):
            client.relay(chunk)
        return True

    def _end(self, dispatch: Dispatch, last: bytes) -> None:
        """All of the answer is here. Is it whole?"""
        if (stream := self._stream) is not None:
            last += stream.end()
            if stream.lacks_end:
                dispatch.ended(Outcome.LOST, time.monotonic(), reason="a stream without its end")
                self._shared.metrics.broken_answers.labels(dispatch.endpoint.name).inc()
                if last:
                    self._client.write(last)
                self._break_off(lost("The endpoint ended its answer before it was whole."))
                return
        self._client.end(last)
        self._judge(dispatch)

    def _judge(self, dispatch: Dispatch) -> None:
        """All of an answer has been sent on."""
        if (stream := self._stream) is not None and stream.told_error:
            dispatch.ended(Outcome.FAILED, time.monotonic(), reason="an error event within the answer")
        else:
            dispatch.ended(Outcome.ANSWERED, time.monotonic(), usage=self._reader.usage)

    def _break_off(self, error: APIError) -> None:
        # The blank line ends an event that was cut within a line, which would swallow ours.
        self._client.end(b"\n\n" + event_of(self._call.path, error.status, error.body(), self._request.id))


async def _beginning_of(connection: Connection, chunk: bytes, most: int = LONGEST) -> bytes:
    """All of an answer that begins so, if it is no longer than that."""
    pieces, size = [chunk], len(chunk)
    while not connection.exhausted and size < most:
        pieces.append(await connection.read())
        size += len(pieces[-1])
    return b"".join(pieces)
