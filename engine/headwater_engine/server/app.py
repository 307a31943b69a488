"""The paths of the engine's HTTP server: who answers what, and what probes are told."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from headwater import __version__
from headwater.http.answering import Answering
from headwater.http.connection import ClientConnection
from headwater.http.replies import answer_json
from headwater.http.request import Request
from headwater.http.shapes import tell
from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.errors import APIError, BadRequestError, InternalServerError, MethodNotAllowedError, NotFoundError
from headwater.openai.errors import ServiceUnavailableError as Unavailable
from headwater.openai.models import ModelList
from headwater.openai.tokenize import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from headwater_engine.server import chat, completions, openapi, other_apis
from headwater_engine.server.admission import Admission
from headwater_engine.server.answer import Answer, Form
from headwater_engine.server.asking import Question
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics
from headwater_engine.server.other_apis import OtherAPIs
from headwater_engine.server.pooling import PoolingAPI
from headwater_engine.server.served_model import ServedModel

log = structlog.get_logger(__name__)

FROZEN_AFTER = 30.0
"""Seconds without a sign from the engine's loop after which /health fails. Each layer of a long step is one."""

_MODELS: Final = "/v1/models/"

Handler = Callable[[Request, ClientConnection], Awaitable[None]]


class EngineApp:
    """Answers requests. `model` comes once the tokenizer is loaded, `engine.ready` once the weights are."""

    def __init__(self, engine: EngineClient, metrics: ServerMetrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self._admission = Admission(engine.settings, metrics.turned_away, metrics.prompt_tokens_held)
        self._pooling = PoolingAPI(engine, metrics, self._admission)
        self._other_apis = OtherAPIs(self._chat, self._tokenize)
        self.model: ServedModel | None = None
        self.draining = False
        self.running = 0
        """Requests that are being answered."""
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.paths: dict[str, tuple[bytes, Handler]] = {
            "/v1/chat/completions": (b"POST", self._chat),
            "/v1/completions": (b"POST", self._completions),
            **dict.fromkeys(other_apis.PATHS, (b"POST", self._other_apis.ask)),
            "/v1/embeddings": (b"POST", self._embeddings),
            **dict.fromkeys(("/v1/score", "/score"), (b"POST", self._score)),
            **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), (b"POST", self._rerank)),
            "/v1/models": (b"GET", self._models),
            "/tokenize": (b"POST", self._tokenize),
            "/detokenize": (b"POST", self._detokenize),
            "/tokenizer_info": (b"GET", self._tokenizer_info),
            "/openapi.json": (b"GET", self._openapi),
            "/docs": (b"GET", self._docs),
            "/health": (b"GET", self._health),
            "/ready": (b"GET", self._ready),
            "/metrics": (b"GET", self._prometheus),
            "/version": (b"GET", self._version),
        }

    async def __call__(self, request: Request, client: ClientConnection) -> None:
        self.running += 1
        self._quiet.clear()
        try:
            await self._answer(request, client)
        except APIError as error:
            tell(client, request.path, error, request.id)
        except asyncio.CancelledError:
            if not client.left:
                raise
        except BaseException:  # A panic within the tokenizer is no Exception.
            log.exception("request failed", path=request.path, request_id=request.id.decode("latin-1"))
            failed = InternalServerError("The server failed on this request; its log says why.")
            tell(client, request.path, failed, request.id)
        finally:
            self.running -= 1
            if not self.running:
                self._quiet.set()

    async def until_quiet(self) -> None:
        """Wait until no request is being answered."""
        await self._quiet.wait()

    async def _answer(self, request: Request, client: ClientConnection) -> None:
        if request.error is not None:
            raise request.error
        if self._other_apis.answers(request, client):
            return
        method, handler = self._find(request.path)
        # An answer to HEAD is that to GET, and loses its body on the way out.
        if (b"GET" if request.method == b"HEAD" else request.method) != method:
            raise MethodNotAllowedError(f"{request.method.decode('latin-1')} is not allowed for {request.path}.")
        await handler(request, client)

    def _find(self, path: str) -> tuple[bytes, Handler]:
        if (found := self.paths.get(path)) is not None:
            return found
        if path.startswith(_MODELS):
            return b"GET", self._one_model
        raise NotFoundError.at(path, self.paths, "engine")

    # What clients ask

    async def _chat(self, request: Request, client: Answering) -> None:
        model, context = self._generating()
        asked = ChatCompletionRequest.parse(request.body)
        request.drop_body()
        with self._admission.of(asked):
            question = await chat.ask(model, context, asked)
            with self._admission.holding(question, context):
                await self._ask(model, question, chat.form(model, asked, question), client)

    async def _completions(self, request: Request, client: ClientConnection) -> None:
        model, context = self._generating()
        asked = CompletionRequest.parse(request.body)
        request.drop_body()
        with self._admission.of(asked, prompts=len(asked.prompts)):
            question = await completions.ask(model, context, asked)
            with self._admission.holding(question, context):
                await self._ask(model, question, completions.form(model, asked, question), client)

    async def _ask(self, model: ServedModel, question: Question, form: Form, client: Answering) -> None:
        await Answer(self.engine, model, self.metrics, question, form, client).run()

    async def _embeddings(self, request: Request, client: ClientConnection) -> None:
        await self._pooling.embeddings(*self._open(), request, client)

    async def _score(self, request: Request, client: ClientConnection) -> None:
        await self._pooling.score(*self._open(), request, client)

    async def _rerank(self, request: Request, client: ClientConnection) -> None:
        await self._pooling.rerank(*self._open(), request, client)

    async def _models(self, request: Request, client: ClientConnection) -> None:
        model, context = self._loaded()
        answer_json(client, ModelList([model.card(name, context) for name in model.names]))

    async def _one_model(self, request: Request, client: ClientConnection) -> None:
        model, context = self._loaded()
        name = unquote(request.path.removeprefix(_MODELS))
        model.check_name(name)
        answer_json(client, model.card(name, context))

    async def _tokenizer_info(self, request: Request, client: ClientConnection) -> None:
        model, context = self._loaded()
        answer_json(client, model.tokenizer_info() | {"model_max_length": context})

    async def _tokenize(self, request: Request, client: Answering) -> None:
        model, context = self._loaded()
        asked = TokenizeRequest.parse(request.body)
        model.check_name(asked.model)
        text = asked.prompt if asked.prompt is not None else await model.render(asked)
        model.check_length(text, context, "messages" if asked.prompt is None else "prompt")
        tokens = await asyncio.to_thread(model.encode, text, add_special_tokens=asked.add_special_tokens)
        names = [model.backend.id_to_token(token) for token in tokens] if asked.return_token_strs else None
        answer_json(client, TokenizeAnswer(count=len(tokens), max_model_len=context, tokens=tokens, token_strs=names))

    async def _detokenize(self, request: Request, client: ClientConnection) -> None:
        model, _ = self._loaded()
        asked = DetokenizeRequest.parse(request.body)
        model.check_name(asked.model)
        model.check_tokens(asked.tokens, "tokens")
        answer_json(client, DetokenizeAnswer(model.backend.decode(asked.tokens, skip_special_tokens=False)))

    def _loaded(self) -> tuple[ServedModel, int]:
        """The model, and the tokens that its context holds. Raises Unavailable or InternalServerError."""
        if self.engine.failure is not None:
            raise InternalServerError(self.engine.failure, code="engine_dead")
        if self.model is None or self.engine.ready is None:
            percent = f"{self.engine.loading.fraction:.0%}"
            raise Unavailable(f"The model is still loading ({percent}).", code="model_loading", retry_after=5)
        return self.model, self.engine.ready.max_model_len

    def _open(self) -> tuple[ServedModel, int]:
        """As `_loaded`, for what would be answered by the engine."""
        loaded = self._loaded()
        if self.draining:
            raise Unavailable("This engine is about to end.", code="draining", retry_after=1)
        return loaded

    def _generating(self) -> tuple[ServedModel, int]:
        """As `_open`, for what asks for text. Raises BadRequestError where the model makes none."""
        model, context = self._open()
        if model.plan is not None:
            paths = "/v1/score and /v1/rerank" if model.plan.scores else "/v1/embeddings, /v1/score and /v1/rerank"
            raise BadRequestError(
                f"{model.names[0]} generates no text here; this engine answers {paths}.", code="not_done_here"
            )
        return model, context

    # What probes ask

    async def _health(self, request: Request, client: ClientConnection) -> None:
        """Whether the engine's loop makes progress; while the weights load, whether its process lives."""
        if self.engine.failure is not None:
            answer_json(client, {"status": "dead", "reason": self.engine.failure}, 503)
        elif (reason := self._frozen()) is not None:
            answer_json(client, {"status": "frozen", "reason": reason}, 503)
        else:
            answer_json(client, {"status": "ok"})

    async def _ready(self, request: Request, client: ClientConnection) -> None:
        """Whether new requests should come here: the weights are loaded, and it is not about to end."""
        if self.draining:
            answer_json(client, {"status": "draining"}, 503)
        elif self.engine.failure is not None:
            answer_json(client, {"status": "failed", "reason": self.engine.failure}, 503)
        elif self.engine.ready is None or self.model is None:
            loading = self.engine.loading
            answer_json(client, {"status": "loading", "phase": loading.phase, "fraction": loading.fraction}, 503)
        elif (reason := self._frozen()) is not None:
            answer_json(client, {"status": "frozen", "reason": reason}, 503)
        else:
            ready = self.engine.ready
            answer_json(client, {"status": "ready", "kernels": ready.kernels, "ranks": ready.ranks})

    def _frozen(self) -> str | None:
        """Since when the engine's loop gives no sign, in words; None where it does, or is not there yet."""
        silence = time.monotonic() - self.engine.heard_at
        if self.engine.ready is None or silence <= FROZEN_AFTER:
            return None
        return f"no sign from the engine for {silence:.0f} seconds"

    async def _prometheus(self, request: Request, client: ClientConnection) -> None:
        client.answer(200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], self.metrics.page())

    async def _openapi(self, request: Request, client: ClientConnection) -> None:
        answer_json(client, openapi.openapi())

    async def _docs(self, request: Request, client: ClientConnection) -> None:
        client.answer(200, [(b"content-type", b"text/html; charset=utf-8")], openapi.page())

    async def _version(self, request: Request, client: ClientConnection) -> None:
        answer_json(client, {"version": __version__})
