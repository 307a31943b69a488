"""The paths of the engine's HTTP server, and its life: it listens while the weights load, serves, drains, and ends.

Ends with 0 after SIGTERM or SIGINT, once the running answers are done or their time is up; with 1 where it cannot
listen, the model cannot be loaded, or the engine process dies.
"""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import unquote

import structlog
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST

from headwater import __version__
from headwater.http.answering import Answering
from headwater.http.bodies import BodyBudget
from headwater.http.connection import ClientConnection
from headwater.http.descriptors import Descriptors
from headwater.http.replies import answer_error, answer_json
from headwater.http.request import Request
from headwater.http.server import Server
from headwater.listening import cannot_listen
from headwater.logs import configure_logging
from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.errors import APIError, BadRequestError, InternalServerError, MethodNotAllowedError, NotFoundError
from headwater.openai.errors import ServiceUnavailableError as Unavailable
from headwater.openai.models import ModelList
from headwater.openai.tokenize import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from headwater_engine.config import EngineSettings
from headwater_engine.errors import LoadError
from headwater_engine.server import chat, completions, openapi, other_apis
from headwater_engine.server.admission import Admission
from headwater_engine.server.answer import Answer, Form
from headwater_engine.server.asking import Question
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics
from headwater_engine.server.node import NodeServer
from headwater_engine.server.other_apis import OtherAPIs
from headwater_engine.server.pooling import PoolingAPI
from headwater_engine.server.served_model import ServedModel
from headwater_engine.server.start import shown_start

log = structlog.get_logger(__name__)

FROZEN_AFTER = 30.0
"""Seconds without a sign from the engine's loop after which /health fails. Each layer of a long step is one."""

_LARGEST_HEAD: Final = 64 * 1024
"""Bytes of a request's head."""
_BODIES: Final = 8
"""Bodies of the largest size that are held at once: each is let go of as soon as it is read."""
_MODELS: Final = "/v1/models/"
_LAST_WORDS: Final = 1.0
"""Seconds in which open requests are told that the server ends."""
_LAST_THREADS: Final = 0.5
"""Seconds in which threads may come to an end."""
_ENDED: Final = "The server ended before the answer was complete."

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
            answer_error(client, error)
        except asyncio.CancelledError:
            if not client.left:
                raise
        except BaseException:  # A panic within the tokenizer is no Exception.
            log.exception("request failed", path=request.path, request_id=request.id.decode("latin-1"))
            answer_error(client, InternalServerError("The server failed on this request; its log says why."))
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
        raise NotFoundError.at(path, self.paths)

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


class EngineServer:
    """Runs `EngineApp` and the engine process beside each other."""

    def __init__(self, settings: EngineSettings, command: list[str] | None = None) -> None:
        """`command`: what to run instead of the engine process; see EngineClient."""
        self._settings = settings
        self._metrics = ServerMetrics(settings.metrics_names)
        self._metrics.places.set(settings.max_num_seqs)
        self._start = shown_start()
        self._engine = EngineClient(settings, command, self._metrics.take, self._start)
        self._app = EngineApp(self._engine, self._metrics)
        self._failed = False
        self._signalled, self._ending = asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        """Until a signal, or the engine's end. Returns the exit status."""
        settings = self._settings
        largest = int(settings.max_body_mib * 2**20)
        self._server = Server(
            self._app,
            Descriptors.of_process(),
            max_head=_LARGEST_HEAD,
            max_body=largest,
            bodies=BodyBudget(_BODIES * largest),
        )
        try:
            await self._server.listen(settings.host, settings.port)
        except OSError as error:
            self._fail(cannot_listen(settings.host, settings.port, error))
            return 1
        with self._signals():
            async with self._engine, asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in (self._watch_engine(), self._load(), self._drain())]
                await self._ending.wait()
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
        self._metrics.vllm.model_name = self._app.model.names[0]
        ready = await self._engine.until_ready()
        self._metrics.ready(ready)
        plan = self._app.model.plan
        if plan is None:
            self._engine.tell_tokenizer(self._app.model.backend.to_str(), self._app.model.eos_token_ids)
        self._app.model.vocabulary = ready.vocab_size if plan is None else plan.second_text or ready.vocab_size
        # What is loaded stays: the collector need not look through it again, while streams wait.
        gc.collect()
        gc.freeze()
        url = f"http://{self._settings.host}:{self._server.port}"
        self._start.ready(url, self._app.model.names, ready)
        calls, reasoning = self._app.model.speech.names
        log.info("chat", tool_calls=calls, reasoning=reasoning)

    async def _watch_engine(self) -> None:
        await self._engine.watch()
        self._fail(self._engine.failure or "The engine process ended.")

    def _fail(self, reason: str) -> None:
        """Say why, let the errors reach their clients, and end."""
        if not self._failed:
            self._failed = True
            self._ending.set()
            self._start.close()
            print(f"headwater serve: {reason}", file=sys.stderr)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take_signal)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _take_signal(self) -> None:
        """The first one lets running answers finish, the second one does not."""
        now = asyncio.get_running_loop().time()
        if self._app.draining:
            self._engine.leaves_by = now
            self._ending.set()
            return
        self._app.draining = True
        self._start.close()
        self._engine.leaves_by = now + self._settings.shutdown_timeout
        self._server.leave()
        self._signalled.set()

    async def _drain(self) -> None:
        await self._signalled.wait()
        log.info("draining", open_requests=self._app.running, timeout=self._settings.shutdown_timeout)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._app.until_quiet(), self._settings.shutdown_timeout)
        self._ending.set()

    async def _end_open_requests(self) -> None:
        """Tell their clients why."""
        if self._app.model is not None:
            self._app.model.close()
        self._engine.fail_open_requests(_ENDED)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._app.until_quiet(), _LAST_WORDS)
        await self._server.close()


def run(settings: EngineSettings, command: list[str] | None = None) -> int:
    """Serve until a signal or the engine's end. Returns the exit status, or ends the process with it."""
    configure_logging(settings.log_level)
    # Python would turn a Ctrl-C that comes before the server listens into a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    loop, threads = uvloop.new_event_loop(), ThreadPoolExecutor(thread_name_prefix="text")
    loop.set_default_executor(threads)
    try:
        server = NodeServer(settings) if settings.node_rank else EngineServer(settings, command)
        status = loop.run_until_complete(server.run())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        loop.close()
    _end_with_threads(status)
    return status


def _end_with_threads(status: int) -> None:
    """Python waits for its threads at the end, and one in which a chat template never ends cannot be stopped."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(_LAST_THREADS)
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
