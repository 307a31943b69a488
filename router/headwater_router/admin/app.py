"""The admin API's paths.

Its handlers are coroutines, all of them: FastAPI runs plain functions in threads, and nothing of the router may be
touched from another one. None of them reads a body, so none can be made to hold one.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException

from headwater import __version__
from headwater.kubernetes import LOAD_METRICS
from headwater.openai.errors import (
    APIError,
    BadRequestError,
    InternalServerError,
    MethodNotAllowedError,
    NotFoundError,
)
from headwater.validation import allowed, field_path
from headwater_router.admin.controls import Controls, Page, Pages
from headwater_router.admin.guard import Guard
from headwater_router.admin.models import DecisionInfo, Drain, EndpointInfo, FailureInfo, KeysInfo, ModelInfo
from headwater_router.admin.shown import shown_keys, shown_settings
from headwater_router.admission.keys import Keys
from headwater_router.config import RouterSettings

log = structlog.get_logger(__name__)

MOST_RECORDS: Final = 200
"""Decisions, or failures, of one answer."""
_LONGEST_WAIT: Final = 600.0
"""Seconds."""
_LOOK_EVERY: Final = 0.1
"""Seconds between two looks at an endpoint that is drained."""

Name = Annotated[str, Path(description="An endpoint's name, or its id.", max_length=512)]
Names = Annotated[
    Sequence[str],
    Query(
        alias="name[]",
        description="Metrics that will do. Where all of them are of those that replicas are scaled by, the page has no "
        "others.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=MOST_RECORDS, description="How many of the last ones.")]


def make_app(pages: Pages, controls: Controls, settings: RouterSettings, clients: Keys | None, guard: Guard) -> FastAPI:
    """`clients`: the keys of the clients' port, where it asks for any."""
    app = FastAPI(title="Headwater router", version=__version__, redoc_url=None, swagger_ui_oauth2_redirect_url=None)
    app.include_router(_plain_routes(pages))
    schemes = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="x-api-key", auto_error=False))]
    admin = APIRouter(prefix="/admin", dependencies=[Depends(guard), *schemes])
    _add_endpoints(admin, controls)
    _add_actions(admin, controls)
    _add_records(admin, controls)
    _add_settings(admin, controls, settings, clients)
    app.include_router(admin)
    for error, answer in _ANSWERS:
        app.add_exception_handler(error, answer)
    return app


def _plain_routes(pages: Pages) -> APIRouter:
    """What probes and Prometheus ask for, without a key."""
    plain = APIRouter(tags=["probes"])

    @plain.get("/health")
    async def health() -> dict[str, str]:
        """The router's loop turns."""
        return {"status": "ok"}

    @plain.get("/ready", response_class=Response, responses={503: {"description": "They should not."}})
    async def ready() -> Response:
        """Whether new requests should come here."""
        return _page(pages.ready())

    @plain.get("/version", response_class=Response)
    async def version() -> Response:
        return _page(pages.version())

    @plain.get("/metrics", response_class=Response)
    async def metrics(names: Names = ()) -> Response:
        """For Prometheus."""
        return _page(pages.load() if names and LOAD_METRICS.issuperset(names) else pages.prometheus())

    return plain


def _page(page: Page) -> Response:
    return Response(page.body, page.status, {"content-type": page.content_type})


def _add_endpoints(admin: APIRouter, controls: Controls) -> None:
    @admin.get("/endpoints", tags=["endpoints"])
    async def endpoints() -> list[EndpointInfo]:
        return list(controls.endpoints())

    @admin.get("/models", tags=["models"])
    async def models() -> list[ModelInfo]:
        return list(controls.models())


def _add_actions(admin: APIRouter, controls: Controls) -> None:
    @admin.post("/endpoints/{name:path}/cordon", tags=["endpoints"])
    async def cordon(name: Name) -> EndpointInfo:
        """Send it no new requests. Running answers go on."""
        endpoint = _find(controls, name)
        controls.cordon(endpoint.id, True)
        return _find(controls, endpoint.id)

    @admin.post("/endpoints/{name:path}/uncordon", tags=["endpoints"])
    async def uncordon(name: Name) -> EndpointInfo:
        endpoint = _find(controls, name)
        controls.cordon(endpoint.id, False)
        return _find(controls, endpoint.id)

    @admin.post("/endpoints/{name:path}/drain", tags=["endpoints"])
    async def drain(
        name: Name, wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT, description="Seconds at most.")] = 0
    ) -> Drain:
        """Cordon it, and say whether nothing runs there any more."""
        endpoint = _find(controls, name)
        controls.cordon(endpoint.id, True)
        return await _drained(controls, endpoint.id, wait)

    @admin.post("/endpoints/{name:path}/eject", tags=["endpoints"])
    async def eject(name: Name, seconds: Annotated[float, Query(gt=0, le=86_400)] = 30) -> EndpointInfo:
        """Open its breaker for so long, as if it had failed."""
        endpoint = _find(controls, name)
        controls.eject(endpoint.id, seconds)
        return _find(controls, endpoint.id)

    @admin.post("/endpoints/{name:path}/reset", tags=["endpoints"])
    async def reset(name: Name) -> EndpointInfo:
        """Close its breaker, and forget its learned speed."""
        endpoint = _find(controls, name)
        controls.reset(endpoint.id)
        return _find(controls, endpoint.id)


def _add_records(admin: APIRouter, controls: Controls) -> None:
    @admin.get("/decisions", tags=["requests"])
    async def decisions(limit: Limit = 50) -> list[DecisionInfo]:
        """The last decisions, the newest first."""
        return [DecisionInfo.model_validate(each) for each in [*controls.decisions()][: -limit - 1 : -1]]

    @admin.get("/failures", tags=["requests"])
    async def failures(limit: Limit = 50) -> list[FailureInfo]:
        """The last failures, the newest first."""
        return [FailureInfo.model_validate(each) for each in [*controls.failures()][: -limit - 1 : -1]]


def _add_settings(admin: APIRouter, controls: Controls, settings: RouterSettings, clients: Keys | None) -> None:
    @admin.get("/settings", tags=["settings"])
    async def shown() -> dict[str, Any]:
        """All settings, without secrets."""
        return shown_settings(settings)

    @admin.get("/keys", tags=["settings"])
    async def keys() -> KeysInfo:
        """The keys of clients: names, limits and use."""
        return shown_keys(clients)


def _find(controls: Controls, name: str) -> EndpointInfo:
    """Raises NotFoundError, or BadRequestError where several endpoints have the name."""
    endpoints = controls.endpoints()
    found = [each for each in endpoints if each.id == name] or [each for each in endpoints if each.name == name]
    if not found:
        raise NotFoundError(f"There is no endpoint {name!r}.")
    if len(found) > 1:
        ids = ", ".join(each.id for each in found)
        raise BadRequestError(f"Several endpoints have the name {name!r}; say which, by id: {ids}.", param="name")
    return found[0]


async def _drained(controls: Controls, endpoint: str, wait: float) -> Drain:
    until = asyncio.get_running_loop().time() + wait
    while True:
        now = _find(controls, endpoint)
        if not now.load.in_flight or asyncio.get_running_loop().time() >= until:
            return Drain(drained=not now.load.in_flight, endpoint=now)
        await asyncio.sleep(_LOOK_EVERY)


# Errors, in the shape of all others


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return JSONResponse(error.body(), error.status, error.headers())


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return await _api_error(request, MethodNotAllowedError(f"{request.method} is not allowed here."))
    return await _api_error(request, NotFoundError("There is nothing at this path."))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = error.errors()[0]
    name = field_path(detail["loc"][1:])
    message = f"`{name}`: {allowed(detail)}."
    return await _api_error(request, BadRequestError(message, param=name))


async def _failed(request: Request, error: Exception) -> Response:
    log.error("admin request failed", path=request.scope["path"], exc_info=error)
    return await _api_error(request, InternalServerError("The router failed on this request; its log says why."))


_ANSWERS: Final = (
    (APIError, _api_error),
    (HTTPException, _http_error),
    (RequestValidationError, _invalid),
    (Exception, _failed),
)
