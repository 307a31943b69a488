"""One request on its way through: pick, send, retry, stream the answer, and give everything back however it ends."""

import asyncio
import random
import time
from typing import Final

import structlog

from headwater.openai.errors import (
    APIError,
    BadGatewayError,
    GatewayTimeoutError,
    ModelNotFoundError,
    ServiceUnavailableError,
)
from headwater.openai.stream import error_event
from headwater_router.admission.hold import Hold
from headwater_router.descriptors import Descriptors, NoRoomError
from headwater_router.endpoints.endpoint import Endpoint, ServedModel
from headwater_router.endpoints.fleet import Fleet, Served
from headwater_router.gateway.body import Body, read_body, with_model
from headwater_router.gateway.clients import too_many_connections
from headwater_router.gateway.connection import ClientConnection
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.gateway.request import Request
from headwater_router.gateway.spread import Spread
from headwater_router.gateway.usage import find_usage
from headwater_router.headers import OWN_TO_A_CONNECTION, Headers, end_to_end
from headwater_router.index import PromptBuilder
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Decision, Picker, Prompt
from headwater_router.picker.policies import Policies
from headwater_router.picker.weights import conversation
from headwater_router.upstream.connection import Connection
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    ConnectRefusedError,
    NotConnectedError,
    OwnLimitError,
    StalledError,
    UpstreamError,
)
from headwater_router.upstream.pool import Pool

log = structlog.get_logger(__name__)

_NOT_FORWARDED: Final = OWN_TO_A_CONNECTION | {
    b"host",
    b"content-length",
    b"accept-encoding",
    b"expect",
    b"x-request-id",
}
"""accept-encoding: the usage is read off the answer's last bytes, and token streams gain nothing from compression."""
_NOT_PASSED_ON: Final = frozenset((b"x-request-id", b"x-headwater-endpoint", b"x-headwater-decision"))
"""The router sets these itself, the id where the answer begins."""
_RETRY_PAUSE: Final = 0.05
"""Seconds before the second attempt, twice that before the third; half to all of it, at random."""
_RETRIED_STATUSES: Final = frozenset((500, 502, 503, 504))
_STALL_TIMEOUT: Final = 300.0
"""Seconds between two pieces of an answer."""
_NOT_READY_RETRY_AFTER: Final = 2.0


class Forwarder:
    """What all requests share."""

    def __init__(
        self,
        fleet: Fleet,
        policies: Policies,
        prompts: PromptBuilder,
        metrics: RouterMetrics,
        descriptors: Descriptors,
        hold: Hold,
        *,
        max_attempts: int,
        connect_timeout: float,
        connection_wait: float,
        answer_timeout: float,
    ) -> None:
        self.fleet = fleet
        self.spread = Spread(fleet)
        self.policies = policies
        self.prompts = prompts
        self.metrics = metrics
        self.descriptors = descriptors
        self.connection_wait = connection_wait
        self.hold = hold
        self.max_attempts = max_attempts
        self.answer_timeout = answer_timeout
        self.open_requests = 0
        self.begun = 0
        """Requests since the start."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._connect_timeout = connect_timeout
        self._pools: dict[tuple[str, int, bool], Pool] = {}

    def pool(self, endpoint: Endpoint) -> Pool:
        address = (endpoint.host, endpoint.port, endpoint.tls is not None)
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = Pool(
                endpoint.host, endpoint.port, self._connect_timeout, self.descriptors, endpoint.tls
            )
        return pool

    def identity(self, model: str) -> ServedModel:
        """What the name stands for.

        Raises ModelNotFoundError, or ServiceUnavailableError where it is not known yet what there is.
        """
        found = self.fleet.identity(model)
        if found is not None:
            return found
        if self.fleet.undiscovered or model in self.fleet.models:
            raise not_ready(model)
        raise ModelNotFoundError(model, self.fleet.models)

    async def forward(self, request: Request, client: ClientConnection, body: Body, model: str) -> None:
        """Answer one request. `body`: what was read of it. Raises APIError while nothing is sent yet."""
        started = time.monotonic()
        identity = self.identity(model)
        prompt = self.prompts.build(request.path, body, request.headers, model=identity.base, adapter=identity.adapter)
        # Its answer is worth the price only where there is more than one deployment to choose from.
        key = conversation(body, prompt) if len(self.fleet.promised(model)) > 1 else None
        forwarding = _Forwarding(self, request, client, prompt, model, key, started)
        self.open_requests += 1
        self.begun += 1
        self._idle.clear()
        try:
            await forwarding.run()
        finally:
            self.open_requests -= 1
            if not self.open_requests:
                self._idle.set()

    async def until_idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def not_ready(model: str) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"No endpoint of the model `{model}` is ready.", code="no_endpoint_ready", retry_after=_NOT_READY_RETRY_AFTER
    )


class _Forwarding:
    """The state of one request."""

    __slots__ = ("_before_last", "_body", "_client", "_head", "_held_since", "_key", "_last", "_model", "_prompt",
                 "_request_id", "_shared", "_started", "_streamed")  # fmt: skip

    def __init__(
        self,
        shared: Forwarder,
        request: Request,
        client: ClientConnection,
        prompt: Prompt,
        model: str,
        key: int | None,
        started: float,
    ) -> None:
        self._shared = shared
        self._client = client
        self._body = request.body
        self._prompt = prompt
        self._model = model
        self._key = key
        self._started = started
        self._held_since: float | None = None
        self._streamed = False
        self._before_last = self._last = b""
        """The last two pieces of the answer, in which its usage is looked for."""
        self._request_id = request.id
        self._head = _request_head(request)

    async def run(self) -> None:
        """Forward, once there is a descriptor for it."""
        shared, descriptors = self._shared, self._shared.descriptors
        if not shared.fleet.ready(self._model):
            await self._available([])  # If it is held, then without a descriptor, which others need meanwhile.
        if not descriptors.take():
            try:
                await descriptors.wait(shared.connection_wait)
            except NoRoomError:
                raise too_many_connections() from None
        try:
            await self._attempts()
        finally:
            descriptors.give()

    async def _attempts(self) -> None:
        shared = self._shared
        tried: list[Endpoint] = []
        failure: APIError | None = None
        for attempt in range(shared.max_attempts):
            if attempt:
                await asyncio.sleep(_RETRY_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1))
            served = await self._available(tried)
            if not served:
                break
            last = attempt == shared.max_attempts - 1 or len(served) == 1
            endpoint, error = await self._attempt(shared.spread.choose(self._model, served, self._key), last)
            if error is None:
                return
            tried.append(endpoint)
            failure = error
        raise failure or not_ready(self._model)

    async def _available(self, tried: list[Endpoint]) -> list[Served]:
        """Who could take the request now, or after being held. Raises APIError where it was held in vain."""
        shared, model = self._shared, self._model
        while True:
            now = time.monotonic()
            serving = shared.fleet.serving(model)
            served = [each for each in serving if each[0].available(now) and each[0] not in tried]
            if served or shared.fleet.ready(model) or not shared.hold.limit:
                return served
            if (deployment := shared.spread.to_wake(model, self._key)) is None:
                return served
            if self._held_since is None:
                self._held_since = now
            patience = shared.hold.seconds - (now - self._held_since)
            await shared.hold.wait(model, deployment, len(self._body), patience)
            shared.identity(model)
            tried.clear()  # Whoever is ready now has come, or come back, since.

    async def _attempt(self, served: list[Served], last: bool) -> tuple[Endpoint, APIError | None]:
        """Try one endpoint. Returns it, and why it failed if another one may be tried."""
        shared, now = self._shared, time.monotonic()
        by_target = {each[0].target.id: each for each in served}
        picker = shared.policies.of(shared.fleet.deployment(served[0][0]).policy)
        decision = picker.pick(self._prompt, [endpoint.target for endpoint, _ in served], now)
        endpoint, model = by_target[decision.target.id]
        endpoint.breaker.sent()
        shared.metrics.decisions[decision.label].inc()
        shared.metrics.overhead.observe(now - self._started)
        body = self._body
        if model.upstream:
            body = with_model(body, read_body(body), model.upstream)
        head = b"POST %b%bcontent-length: %d\r\nhost: %b\r\n%b\r\n" % (
            endpoint.path, self._head, len(body), endpoint.authority, endpoint.key.header
        )  # fmt: skip
        ok, cached = False, None
        connection: Connection | None = None
        try:
            deadline = asyncio.get_running_loop().time() + shared.answer_timeout
            connection = await shared.pool(endpoint).ask(head, body, deadline, _STALL_TIMEOUT)
            if connection.status in _RETRIED_STATUSES:
                endpoint.breaker.failed(time.monotonic())
                if not last:
                    shared.metrics.retries.labels("status").inc()
                    return endpoint, BadGatewayError(f"The endpoint answered with status {connection.status}.")
            else:
                endpoint.breaker.succeeded()
            cached = await self._pass_on(connection, endpoint, picker, decision)
            ok = connection.status < 400
            return endpoint, None
        except UpstreamError as error:
            return endpoint, self._upstream_failed(endpoint, error)
        except BaseException:
            endpoint.breaker.abandoned()
            raise
        finally:
            if connection is not None:
                connection.release()
            outcome = Outcome.ANSWERED if ok else Outcome.FAILED
            picker.finished(decision, time.monotonic(), outcome, cached)

    async def _pass_on(
        self, connection: Connection, endpoint: Endpoint, picker: Picker, decision: Decision
    ) -> int | None:
        """Send the answer on as it comes. Returns the cached prompt tokens, where its usage says so."""
        headers: Headers = [
            (b"x-headwater-endpoint", endpoint.name.encode()),
            (b"x-headwater-decision", decision.label.encode()),
        ]
        for each in connection.headers:
            name, value = each
            if name not in _NOT_PASSED_ON:
                headers.append(each)
            if name == b"content-type":
                self._streamed = value.startswith(b"text/event-stream")
        client, shared = self._client, self._shared
        # The head goes out with the first byte of the body, so that until then another endpoint can be tried.
        chunk = await connection.read()
        now = time.monotonic()
        picker.first_token(decision, now)
        if self._streamed:
            shared.metrics.ttft.observe(now - self._started)
        client.begin(connection.status, headers)
        while not connection.exhausted:
            if not client.write(chunk):
                await client.drained()
            self._before_last, self._last = self._last, chunk
            chunk = await connection.read(self._relay)
        client.end(chunk)
        if chunk:
            self._before_last, self._last = self._last, chunk
        shared.metrics.answered(connection.status)
        return self._learn(decision)

    def _relay(self, chunk: bytes) -> bool:
        """Send a piece on without waiting, if the client keeps up."""
        if not self._client.relay(chunk):
            return False
        self._before_last, self._last = self._last, chunk
        return True

    def _learn(self, decision: Decision) -> int | None:
        usage = find_usage(self._before_last, self._last)
        if usage is None:
            return None
        metrics = self._shared.metrics
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._shared.prompts.learn(self._prompt, usage.prompt_tokens)
        if usage.cached_tokens is not None:
            # Side by side: predictions of answers that do not say are left out.
            metrics.predicted_cached_tokens.inc(decision.predicted_cached_tokens)
            metrics.actual_cached_tokens.inc(usage.cached_tokens)
        return usage.cached_tokens

    def _upstream_failed(self, endpoint: Endpoint, error: UpstreamError) -> APIError | None:
        """Charge the endpoint. Returns the error for another try; None once an answer was begun, which ends here."""
        if isinstance(error, OwnLimitError):
            endpoint.breaker.abandoned()
        else:
            endpoint.breaker.failed(time.monotonic())
        if isinstance(error, ConnectRefusedError):
            # No need to wait for the next probe.
            self._shared.fleet.mark_dead(endpoint, str(error))
        if not self._client.answer_began:
            reason, status = _failure(error)
            self._shared.metrics.retries.labels(reason).inc()
            return status
        log.warning(
            "answer broken off", endpoint=endpoint.name, reason=str(error), request_id=self._request_id.decode()
        )
        self._shared.metrics.broken_answers.labels(endpoint.name).inc()
        if self._streamed:
            event = error_event(BadGatewayError("The endpoint broke off its answer.", code="endpoint_lost"))
            self._client.end(event)
        # Else: returning without the rest of the body cuts the connection, which is how a client sees the loss.
        return None


def _failure(error: UpstreamError) -> tuple[str, APIError]:
    """The one border where the client's errors become the API's."""
    match error:
        case OwnLimitError():
            return "limit", too_many_connections()
        case NotConnectedError():
            return "connect", BadGatewayError(f"No endpoint could be reached: {error}.", code="endpoint_unreachable")
        case ConnectionLostError():
            return "lost", BadGatewayError("The endpoint broke off before it answered.", code="endpoint_lost")
        case AnswerTimeoutError() | StalledError():
            return "timeout", GatewayTimeoutError("The endpoint did not answer in time.", code="endpoint_timeout")
        case _:
            return "malformed", BadGatewayError(
                f"The endpoint's answer makes no sense: {error}.", code="endpoint_malformed"
            )


def _request_head(request: Request) -> bytes:
    """Its head for the endpoint but for what differs from one to the other."""
    lines = [b"%b HTTP/1.1" % request.target, b"x-request-id: " + request.id]
    for name, value in end_to_end(request.headers, _NOT_FORWARDED):
        lines.append(name + b": " + value)
    return b"\r\n".join(lines) + b"\r\n"
