"""The gateway as an ASGI application: what is forwarded, and what the router answers itself."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from headwater import __version__
from headwater.openai.errors import (
    APIError,
    BadRequestError,
    InternalServerError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    ServiceUnavailableError,
)
from headwater.openai.models import ModelCard, ModelList
from headwater_router.endpoints.fleet import Fleet
from headwater_router.gateway.asgi import (
    ClientGoneError,
    Receive,
    Scope,
    Send,
    read_body,
    send_bytes,
    send_error,
    send_json,
)
from headwater_router.gateway.forward import Forwarder
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.index import PrefixIndex

log = structlog.get_logger(__name__)

FORWARDED: Final = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/tokenize",
        "/detokenize",
    )
)
"""Paths whose JSON body names the model."""

_decode = msgspec.json.Decoder().decode


class Gateway:
    """Raw ASGI: between uvicorn and the endpoints there is nothing but this."""

    def __init__(
        self, forwarder: Forwarder, fleet: Fleet, index: PrefixIndex, metrics: RouterMetrics, *, max_body: int
    ) -> None:
        """`max_body`: bytes."""
        self.draining = False
        self._forwarder = forwarder
        self._fleet = fleet
        self._index = index
        self._metrics = metrics
        self._max_body = max_body
        self._started_at = int(time.time())
        self._local = {
            "/v1/models": self._models,
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._prometheus,
            "/version": self._version,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except APIError as error:
            self._metrics.answered(error.status)
            await send_error(send, error)
        except ClientGoneError:
            self._metrics.answered(499)
        except Exception:
            log.exception("request failed", path=scope["path"])
            self._metrics.answered(500)
            # An answer that had begun cannot become another one; uvicorn says so and cuts the connection.
            with contextlib.suppress(RuntimeError):
                await send_error(send, InternalServerError("The router failed on this request; its log says why."))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path in FORWARDED:
            if scope["method"] != "POST":
                raise MethodNotAllowedError(f"{scope['method']} is not allowed for {path}.")
            if self.draining:
                raise ServiceUnavailableError("The router is about to end.", code="draining", retry_after=1)
            body = await read_body(receive, self._max_body)
            parsed = self._parse(body)
            if parsed.get("model") is None:
                parsed = {**parsed, "model": self._only_model()}
                body = msgspec.json.encode(parsed)
            await self._forwarder.forward(scope, send, body, parsed)
        elif path in self._local or path.startswith("/v1/models/"):
            if scope["method"] not in ("GET", "HEAD"):
                raise MethodNotAllowedError(f"{scope['method']} is not allowed for {path}.")
            if (local := self._local.get(path)) is not None:
                await local(send)
            else:
                await self._model(send, path.removeprefix("/v1/models/"))
        else:
            raise NotFoundError(f"There is nothing at {path}.")

    def _parse(self, body: bytes) -> Mapping[str, Any]:
        """A JSON object whose `model` is a name, if it has one. Raises BadRequestError."""
        try:
            parsed = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
        if not isinstance(parsed, dict):
            raise BadRequestError("The body must be a JSON object.")
        model = parsed.get("model")
        if model is not None and not (isinstance(model, str) and model):
            raise BadRequestError(f"`model` must be a name, found {model!r}.", param="model")
        return parsed

    def _only_model(self) -> str:
        """What a request without `model` means. Raises BadRequestError where that is not one thing."""
        served = self._fleet.models
        bases = {each.base for name in served if (each := self._fleet.identity(name)) is not None}
        if len(bases) != 1:
            raise BadRequestError(
                f"`model` is required; served here: {', '.join(served) or 'none yet'}.", param="model"
            )
        return bases.pop()

    async def _models(self, send: Send) -> None:
        cards = [card for name in self._fleet.models if (card := self._card(name)) is not None]
        await send_json(send, ModelList(cards))

    async def _model(self, send: Send, name: str) -> None:
        card = self._card(name)
        if card is None:
            raise ModelNotFoundError(name, self._fleet.models)
        await send_json(send, card)

    def _card(self, name: str) -> ModelCard | None:
        served = self._fleet.identity(name)
        if served is None:
            return None
        return ModelCard(id=name, created=self._started_at, parent=served.base if served.adapter else None)

    async def _health(self, send: Send) -> None:
        await send_json(send, {"status": "ok"})

    async def _ready(self, send: Send) -> None:
        """Whether requests should come here: the router can tell where they go, and is not about to end.

        On Kubernetes it can as soon as it has heard of all that is there, which may be nothing yet.
        """
        ready = sum(endpoint.takes_requests for endpoint in self._fleet)
        can_route = self._fleet.listed if self._fleet.kubernetes else bool(ready)
        status = "draining" if self.draining else "ready" if can_route else "no endpoint is ready"
        content = {"status": status, "ready_endpoints": ready, "endpoints": len(self._fleet)}
        await send_json(send, content, 200 if status == "ready" else 503)

    async def _prometheus(self, send: Send) -> None:
        self._metrics.collect(self._fleet, self._index, time.monotonic())
        self._metrics.deployments.collect(self._fleet, self._forwarder.hold)
        await send_bytes(send, generate_latest(self._metrics.registry), CONTENT_TYPE_LATEST.encode())

    async def _version(self, send: Send) -> None:
        await send_json(send, {"version": __version__})
