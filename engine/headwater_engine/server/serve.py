"""The life of the engine's HTTP server: it listens while the weights load, serves, drains, and ends.

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
import uvloop

from headwater.http.bodies import BodyBudget
from headwater.http.descriptors import Descriptors
from headwater.http.server import Server
from headwater.listening import cannot_listen
from headwater.logs import configure_logging
from headwater_engine.config import EngineSettings
from headwater_engine.errors import LoadError, StartError
from headwater_engine.server.app import EngineApp
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics
from headwater_engine.server.node import NodeServer
from headwater_engine.server.served_model import ServedModel
from headwater_engine.server.start import shown_start

log = structlog.get_logger(__name__)

_LARGEST_HEAD: Final = 64 * 1024
"""Bytes of a request's head."""
_BODIES: Final = 8
"""Bodies of the largest size that are held at once: each is let go of as soon as it is read."""
_LAST_WORDS: Final = 1.0
"""Seconds in which open requests are told that the server ends."""
_LAST_THREADS: Final = 0.5
"""Seconds in which threads may come to an end."""
_ENDED: Final = "The server ended before the answer was complete."


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
            try:
                async with self._engine, asyncio.TaskGroup() as group:
                    tasks = [group.create_task(each) for each in (self._watch_engine(), self._load(), self._drain())]
                    await self._ending.wait()
                    await self._end_open_requests()
                    for task in tasks:
                        task.cancel()
            except StartError as error:
                self._fail(str(error))
                await self._server.close()
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
            async with asyncio.timeout(self._settings.shutdown_timeout):
                await self._app.until_quiet()
        self._ending.set()

    async def _end_open_requests(self) -> None:
        """Tell their clients why."""
        if self._app.model is not None:
            self._app.model.close()
        self._engine.fail_open_requests(_ENDED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self._app.until_quiet()
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
