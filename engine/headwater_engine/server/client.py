"""The HTTP process's side of the engine process: starts it, watches it, asks it, and hands its answers out.

Answers are handed out in the callback in which they are read: what is done with a token is a call, not a task.
"""

import asyncio
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog
import zmq

from headwater_engine.config import EngineSettings
from headwater_engine.core import parent
from headwater_engine.core.messages import (
    Abort,
    Failed,
    FinishReason,
    Generate,
    Loading,
    Output,
    Outputs,
    Ready,
    Reply,
    Request,
    Shutdown,
    Stats,
)
from headwater_engine.server.private_folder import private_folder

log = structlog.get_logger(__name__)

DEAD = "The engine process died."
Take = Callable[[Output], None]

_AT_ONCE: Final = 100
"""Messages that are taken in before others get their turn."""
_LAST_WORD: Final = 0.2
"""Seconds in which what an engine process said before its end still arrives."""
_TO_LEAVE: Final = 5.0
"""Seconds that an engine process gets to end by itself, where there is time for it."""


def _ignore(stats: Stats) -> None:
    """Nobody asks for metrics."""


class EngineClient:
    """An async context: the engine process lives inside it. `watch` must run as a task."""

    def __init__(
        self, settings: EngineSettings, command: list[str] | None = None, on_stats: Callable[[Stats], None] = _ignore
    ) -> None:
        """`command`: what to run instead of the engine process, with the two endpoints added.

        `on_stats`: called with each Stats once, in their order.
        """
        self.settings = settings
        self._command = command or [sys.executable, "-m", "headwater_engine.core"]
        self._on_stats = on_stats
        self._context = zmq.Context()
        self._stack = AsyncExitStack()
        self._open: dict[str, Take] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Reply)
        self.loading = Loading(0.0, "starting")
        self.ready: Ready | None = None
        """Stays, also where the engine ends: see `failure`."""
        self._became_ready = asyncio.Event()
        self.failure: str | None = None
        """Why there is no engine (any more), in a sentence."""
        self.heard_at = time.monotonic()
        """When the engine's loop last gave a sign."""
        self.leaves_by = math.inf
        """When the engine process is to be gone, in the loop's time."""
        self._logged = 0.0

    async def __aenter__(self) -> Self:
        folder = self._stack.enter_context(private_folder())
        requests, replies = f"ipc://{folder}/requests", f"ipc://{folder}/replies"
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.setsockopt(zmq.SNDHWM, 0)
        self._requests.bind(requests)
        self._replies = self._context.socket(zmq.PULL)
        self._replies.setsockopt(zmq.RCVHWM, 0)
        self._replies.bind(replies)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._replies.fileno(), self._receive)
        environment = {
            # What torch itself shares out, as in models that run through transformers, is OpenMP's, whose threads wait
            # awake for milliseconds and take the cores from those that they wait for. With this, for 50 microseconds.
            "GOMP_SPINCOUNT": "1000",
            **os.environ,
            "HEADWATER_ENGINE_SETTINGS": self.settings.model_dump_json(),
            parent.VARIABLE: str(os.getpid()),
        }
        self._process = await asyncio.create_subprocess_exec(*self._command, requests, replies, env=environment)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            # While it loads it hears nothing, and has nothing to lose.
            if self.ready is None or not await self._leaves_when_told():
                self._process.kill()
            await self._process.wait()
        self._loop.remove_reader(self._replies.fileno())
        self._context.destroy(linger=0)
        await self._stack.aclose()

    async def _leaves_when_told(self) -> bool:
        if not self._send(Shutdown()):
            return False
        try:
            await asyncio.wait_for(self._process.wait(), min(_TO_LEAVE, self.leaves_by - self._loop.time()))
        except TimeoutError:
            return False
        return True

    async def watch(self) -> None:
        """Until the engine process ends. Then every open request has got an error."""
        await self._process.wait()
        await asyncio.sleep(_LAST_WORD)  # It may be Failed, which says more than a status.
        self.failure = self.failure or f"{DEAD[:-1]} with exit status {self._process.returncode}."
        log.error("engine process ended", status=self._process.returncode)
        self.fail_open_requests(self.failure)

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def ask(self, message: Generate, take: Take) -> None:
        """Have `take`, which raises nothing, called with each of the request's outputs, up to one that finishes it."""
        self._open[message.id] = take
        if self.failure is not None:
            self._fail(message.id, self.failure)
        elif not self._send(message):
            self._fail(message.id, "The engine process takes no requests.")

    def leave(self, request_id: str) -> None:
        """Nobody wants more of it. One that has finished needs no word."""
        if self._open.pop(request_id, None) is not None and self.failure is None:
            self._send(Abort([request_id]))

    def fail_open_requests(self, reason: str) -> None:
        """Give each open request an error as its last output."""
        for request_id in list(self._open):
            self._fail(request_id, reason)

    def _fail(self, request_id: str, reason: str) -> None:
        self._deliver(Output(id=request_id, finish_reason=FinishReason.ERROR, error=reason))

    async def until_ready(self) -> Ready:
        """Wait for the weights; for ever, where they never come."""
        await self._became_ready.wait()
        assert self.ready is not None
        return self.ready

    def _send(self, message: Request) -> bool:
        """Says False where nobody is connected. Does not wait otherwise: the socket's queue has no limit."""
        try:
            self._requests.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _receive(self) -> None:
        """Take in what is there, all of it: ZMQ tells that something has come, not that more is left."""
        for _ in range(_AT_ONCE):
            if self._replies.closed:
                return
            try:
                message = self._replies.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(self._decoder.decode(message))
        self._loop.call_soon(self._receive)

    def _take(self, reply: Reply) -> None:
        self.heard_at = time.monotonic()
        match reply:
            case Outputs(outputs):
                for output in outputs:
                    self._deliver(output)
            case Stats():
                self._on_stats(reply)
            case Loading():
                if reply.phase != self.loading.phase or reply.fraction - self._logged >= 0.1:
                    self._logged = reply.fraction
                    log.info("loading", phase=reply.phase, fraction=round(reply.fraction, 2))
                self.loading = reply
            case Ready():
                self.ready = reply
                self._became_ready.set()
            case Failed(message):
                self.failure = message

    def _deliver(self, output: Output) -> None:
        take = self._open.get(output.id) if output.finish_reason is None else self._open.pop(output.id, None)
        if take is not None:
            take(output)
