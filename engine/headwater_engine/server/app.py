"""The HTTP application and its life: it listens while the weights load, serves, drains, and ends.

Ends with 0 after SIGTERM or SIGINT, once the running streams are done or their time is up; with 1 where it cannot
listen, the model cannot be loaded, or the engine process dies.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from headwater import __version__
from headwater.draining import DrainingServer
from headwater.logs import configure_logging
from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.errors import APIError, InternalServerError, MethodNotAllowedError, NotFoundError
from headwater.openai.errors import ServiceUnavailableError as Unavailable
from headwater.openai.models import ModelCard, ModelList
from headwater.openai.stream import CONTENT_TYPE, DONE, error_event, event
from headwater.openai.tokenize import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from headwater_engine.config import EngineSettings
from headwater_engine.errors import LoadError
from headwater_engine.server import chat, completions
from headwater_engine.server.answering import Answers
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics
from headwater_engine.server.served_model import ServedModel

log = structlog.get_logger(__name__)

FROZEN_AFTER = 30.0
"""Seconds without a sign from the engine's loop after which /health fails. A step takes well below one."""

_ENDED = "The server ended before the answer was complete."

_encode = msgspec.json.Encoder().encode


class EngineApp:
    """The endpoints. `model` comes once the tokenizer is loaded, `engine.ready` once the weights are."""

    def __init__(self, engine: EngineClient, metrics: ServerMetrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self.model: ServedModel | None = None
        self.draining = False
        self.asgi = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/health", self.health),
                Route("/ready", self.ready),
                Route("/metrics", self.prometheus),
                Route("/version", self.version),
            ],
            exception_handlers={APIError: _api_error, HTTPException: _http_error, Exception: _unexpected_error},
        )

    # What clients ask

    async def chat(self, http: Request) -> Response:
        answers = self._answers()
        request = ChatCompletionRequest.parse(await http.body())
        question = await chat.ask(answers, request)
        if request.stream:
            return _event_stream(chat.stream(answers, request, question))
        return await _unless_client_leaves(http, chat.whole(answers, request, question))

    async def completions(self, http: Request) -> Response:
        answers = self._answers()
        request = CompletionRequest.parse(await http.body())
        question = await completions.ask(answers, request)
        if request.stream:
            return _event_stream(completions.stream(answers, request, question))
        return await _unless_client_leaves(http, completions.whole(answers, request, question))

    async def models(self, http: Request) -> Response:
        model, limit = self._loaded()
        return _json(
            ModelList(
                [
                    ModelCard(id=name, created=model.created, root=model.source, max_model_len=limit)
                    for name in model.names
                ]
            )
        )

    async def tokenize(self, http: Request) -> Response:
        model, limit = self._loaded()
        request = TokenizeRequest.parse(await http.body())
        model.check_name(request.model)
        text = request.prompt if request.prompt is not None else await asyncio.to_thread(model.render, request)
        tokens = await asyncio.to_thread(model.encode, text, add_special_tokens=request.add_special_tokens)
        names = [model.backend.id_to_token(token) for token in tokens] if request.return_token_strs else None
        return _json(TokenizeAnswer(count=len(tokens), max_model_len=limit, tokens=tokens, token_strs=names))

    async def detokenize(self, http: Request) -> Response:
        model, _ = self._loaded()
        request = DetokenizeRequest.parse(await http.body())
        model.check_name(request.model)
        model.check_tokens(request.tokens, "tokens")
        return _json(DetokenizeAnswer(model.backend.decode(request.tokens, skip_special_tokens=False)))

    # What probes ask

    async def health(self, http: Request) -> Response:
        """Whether the engine's loop makes progress; while the weights load, whether its process lives."""
        silence = time.monotonic() - self.engine.heard_at
        if self.engine.failure is not None:
            return _json({"status": "dead", "reason": self.engine.failure}, 503)
        if self.engine.ready is not None and silence > FROZEN_AFTER:
            return _json({"status": "frozen", "reason": f"no sign from the engine for {silence:.0f} seconds"}, 503)
        return _json({"status": "ok"})

    async def ready(self, http: Request) -> Response:
        """Whether new requests should come here: the weights are loaded, and it is not about to end."""
        if self.draining:
            return _json({"status": "draining"}, 503)
        if self.engine.failure is not None:
            return _json({"status": "failed", "reason": self.engine.failure}, 503)
        if self.engine.ready is None or self.model is None:
            loading = self.engine.loading
            return _json({"status": "loading", "phase": loading.phase, "fraction": loading.fraction}, 503)
        return _json({"status": "ready"})

    async def prometheus(self, http: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def version(self, http: Request) -> Response:
        return _json({"version": __version__})

    def _loaded(self) -> tuple[ServedModel, int]:
        """The model and the length of its context. Raises Unavailable or InternalServerError."""
        if self.engine.failure is not None:
            raise InternalServerError(self.engine.failure, code="engine_dead")
        if self.model is None or self.engine.ready is None:
            percent = f"{self.engine.loading.fraction:.0%}"
            raise Unavailable(f"The model is still loading ({percent}).", code="model_loading", retry_after=5)
        return self.model, self.engine.ready.max_model_len

    def _answers(self) -> Answers:
        model, _ = self._loaded()
        if self.draining:
            raise Unavailable("This engine is about to end.", code="draining", retry_after=1)
        return Answers(self.engine, model, self.metrics)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(content), status, headers, media_type="application/json")


async def _unless_client_leaves(http: Request, answer: Awaitable[msgspec.Struct]) -> Response:
    """Run `answer`, but cancel it, and with it what it asked of the engine, when the connection closes."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.create_task(_until_client_leaves(http))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return Response(status_code=499)  # nobody reads it
        return _json(answering.result())
    finally:
        leaving.cancel()
        answering.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _until_client_leaves(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _event_stream(chunks: AsyncGenerator[msgspec.Struct, None]) -> StreamingResponse:
    return StreamingResponse(_events(chunks), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-cache"})


async def _events(chunks: AsyncGenerator[msgspec.Struct, None]) -> AsyncIterator[bytes]:
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event(chunk)
        except APIError as error:
            yield error_event(error)
            return
        yield DONE


async def _api_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return _json(error.body(), error.status, error.headers())


async def _http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return await _api_error(http, MethodNotAllowedError(f"{http.method} is not allowed for {http.url.path}."))
    return await _api_error(http, NotFoundError(f"There is nothing at {http.url.path}."))


async def _unexpected_error(http: Request, error: Exception) -> Response:
    log.error("request failed", path=http.url.path, exc_info=error)
    return await _api_error(http, InternalServerError("The server failed on this request; its log says why."))


class EngineServer:
    """Runs `EngineApp` and the engine process beside each other."""

    def __init__(self, settings: EngineSettings, command: list[str] | None = None) -> None:
        self._settings = settings
        self._metrics = ServerMetrics()
        self._engine = EngineClient(settings, command)
        self._app = EngineApp(self._engine, self._metrics)
        self._failed = False
        self._server = DrainingServer(
            uvicorn.Config(
                self._app.asgi,
                host=settings.host,
                port=settings.port,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
                timeout_keep_alive=75,
            ),
            self._begin_drain,
        )

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        async with self._engine, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._watch_engine()),
                group.create_task(self._load()),
                group.create_task(self._update_metrics()),
            ]
            try:
                await self._server.serve()
            except SystemExit:  # uvicorn cannot listen, and has logged why
                self._failed = True
            await self._end_open_requests()
            for task in tasks:
                task.cancel()
        return 1 if self._failed else 0

    async def _load(self) -> None:
        try:
            self._app.model = await asyncio.to_thread(ServedModel, self._settings)
        except LoadError as error:
            self._fail(str(error))
            return
        ready = await self._engine.until_ready()
        self._metrics.ready(ready)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        log.info("ready", url=f"http://{self._settings.host}:{port}", models=self._app.model.names)

    async def _watch_engine(self) -> None:
        await self._engine.watch()
        self._fail(self._engine.failure or "The engine process ended.")

    def _fail(self, reason: str) -> None:
        """Say why, let the errors reach their clients, and end."""
        if not self._failed:
            self._failed = True
            print(f"headwater serve: {reason}", file=sys.stderr)
            self._server.should_exit = True

    async def _update_metrics(self) -> None:
        while True:
            self._metrics.take(await self._engine.unseen_stats.get())

    def _begin_drain(self) -> None:
        self._app.draining = True
        self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        log.info("draining", open_requests=self._engine.open_requests, timeout=self._settings.shutdown_timeout)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._engine.until_idle(), self._settings.shutdown_timeout)
        self._engine.fail_open_requests(_ENDED)
        self._server.should_exit = True

    async def _end_open_requests(self) -> None:
        """Tell their clients why; uvicorn leaves them to themselves after a second signal."""
        self._engine.fail_open_requests(_ENDED)
        if answering := self._server.server_state.tasks:
            await asyncio.wait(answering, timeout=1)


def run(settings: EngineSettings) -> int:
    """Serve until a signal or the engine's end. Returns the exit status."""
    configure_logging(settings.log_level)
    # asyncio.run would turn Ctrl-C into a cancellation before the server has drained.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return asyncio.run(EngineServer(settings).run())
