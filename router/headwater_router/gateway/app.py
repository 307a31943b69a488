"""What the gateway does with a request: what is forwarded, and what the router answers itself."""

import asyncio
import time
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
from headwater_router.gateway.body import read_body, with_model
from headwater_router.gateway.clients import too_many_connections
from headwater_router.gateway.connection import ClientConnection
from headwater_router.gateway.forward import Forwarder
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.gateway.request import Request
from headwater_router.headers import Headers
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

_encode = msgspec.json.Encoder().encode


class Gateway:
    """Answers each request that clients' connections hand to it."""

    def __init__(self, forwarder: Forwarder, fleet: Fleet, index: PrefixIndex, metrics: RouterMetrics) -> None:
        self.draining = False
        self._forwarder = forwarder
        self._fleet = fleet
        self._index = index
        self._metrics = metrics
        self._started_at = int(time.time())
        self._local = {
            "/v1/models": self._models,
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._prometheus,
            "/version": self._version,
        }

    async def __call__(self, request: Request, client: ClientConnection) -> None:
        try:
            await self._answer(request, client)
        except APIError as error:
            self._metrics.answered(error.status)
            _answer_error(client, error)
        except asyncio.CancelledError:
            if not client.left:
                raise
            self._metrics.answered(499)
        except Exception:
            log.exception("request failed", path=request.path)
            self._metrics.answered(500)
            # An answer that had begun cannot become another one; its connection is cut.
            if not client.answer_began:
                _answer_error(client, InternalServerError("The router failed on this request; its log says why."))

    async def _answer(self, request: Request, client: ClientConnection) -> None:
        if request.error is not None:
            raise request.error
        path = request.path
        if path in FORWARDED:
            self._check_method(request, path, b"POST")
            if self.draining and client.late:
                raise ServiceUnavailableError("The router is about to end.", code="draining", retry_after=1)
            if client.in_anteroom:
                raise too_many_connections()
            body = read_body(request.body)
            if (model := body.model) is None:
                model = self._only_model()
                request.body = with_model(request.body, body, model)
            await self._forwarder.forward(request, client, body, model)
        elif path in self._local or path.startswith("/v1/models/"):
            self._check_method(request, path, b"GET", b"HEAD")
            if (local := self._local.get(path)) is not None:
                local(client)
            else:
                self._model(client, path.removeprefix("/v1/models/"))
        else:
            raise NotFoundError(f"There is nothing at {path}.")

    def _check_method(self, request: Request, path: str, *allowed: bytes) -> None:
        if request.method not in allowed:
            raise MethodNotAllowedError(f"{request.method.decode()} is not allowed for {path}.")

    def _only_model(self) -> str:
        """What a request without `model` means. Raises BadRequestError where that is not one thing."""
        served = self._fleet.models
        bases = {each.base for name in served if (each := self._fleet.identity(name)) is not None}
        if len(bases) != 1:
            raise BadRequestError(
                f"`model` is required; served here: {', '.join(served) or 'none yet'}.", param="model"
            )
        return bases.pop()

    def _models(self, client: ClientConnection) -> None:
        cards = [card for name in self._fleet.models if (card := self._card(name)) is not None]
        _answer_json(client, ModelList(cards))

    def _model(self, client: ClientConnection, name: str) -> None:
        card = self._card(name)
        if card is None:
            raise ModelNotFoundError(name, self._fleet.models)
        _answer_json(client, card)

    def _card(self, name: str) -> ModelCard | None:
        served = self._fleet.identity(name)
        if served is None:
            return None
        return ModelCard(id=name, created=self._started_at, parent=served.base if served.adapter else None)

    def _health(self, client: ClientConnection) -> None:
        _answer_json(client, {"status": "ok"})

    def _ready(self, client: ClientConnection) -> None:
        """Whether requests should come here: the router can tell where they go, and is not about to end.

        On Kubernetes it can as soon as it has heard of all that is there, which may be nothing yet.
        """
        ready = sum(endpoint.takes_requests for endpoint in self._fleet)
        can_route = self._fleet.listed if self._fleet.kubernetes else bool(ready)
        status = "draining" if self.draining else "ready" if can_route else "no endpoint is ready"
        content = {"status": status, "ready_endpoints": ready, "endpoints": len(self._fleet)}
        _answer_json(client, content, 200 if status == "ready" else 503)

    def _prometheus(self, client: ClientConnection) -> None:
        waiting = self._forwarder.descriptors.waiting
        self._metrics.collect(self._fleet, self._index, waiting, time.monotonic())
        self._metrics.deployments.collect(self._fleet, self._forwarder.hold)
        client.answer(200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], generate_latest(self._metrics.registry))

    def _version(self, client: ClientConnection) -> None:
        _answer_json(client, {"version": __version__})


def _answer_json(client: ClientConnection, content: Any, status: int = 200, headers: Headers | None = None) -> None:
    client.answer(status, [(b"content-type", b"application/json"), *(headers or [])], _encode(content))


def _answer_error(client: ClientConnection, error: APIError) -> None:
    headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    _answer_json(client, error.body(), error.status, headers)
