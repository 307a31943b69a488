"""The HTTP process's side of the engine process: starts it, watches it, asks it, and hands its answers out."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec
import structlog
import zmq
import zmq.asyncio

from headwater_engine.config import EngineSettings
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

log = structlog.get_logger(__name__)

DEAD = "The engine process died."


class EngineClient:
    """An async context: the engine process lives inside it. `watch` must run as a task."""

    def __init__(self, settings: EngineSettings, command: list[str] | None = None) -> None:
        """`command`: what to run instead of the engine process, with the two endpoints added."""
        self._settings = settings
        self._command = command or [sys.executable, "-m", "headwater_engine.core.process"]
        self._context = zmq.asyncio.Context()
        self._stack = AsyncExitStack()
        self._open: dict[str, asyncio.Queue[Output]] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Reply)
        self.loading = Loading(0.0, "starting")
        self.ready: Ready | None = None
        """Stays, also where the engine ends: see `failure`."""
        self._became_ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.failure: str | None = None
        """Why there is no engine (any more), in a sentence."""
        self.stats: Stats | None = None
        self.unseen_stats: asyncio.Queue[Stats] = asyncio.Queue()
        """For /metrics: each Stats once."""
        self.heard_at = time.monotonic()
        """When the engine's loop last gave a sign."""
        self._logged = 0.0

    async def __aenter__(self) -> Self:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-"))
        requests, replies = f"ipc://{folder}/requests", f"ipc://{folder}/replies"
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.setsockopt(zmq.SNDHWM, 0)
        self._requests.bind(requests)
        self._replies = self._context.socket(zmq.PULL)
        self._replies.setsockopt(zmq.RCVHWM, 0)
        self._replies.bind(replies)
        environment = os.environ | {"HEADWATER_ENGINE_SETTINGS": self._settings.model_dump_json()}
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
        self._context.destroy(linger=0)
        await self._stack.aclose()

    async def _leaves_when_told(self) -> bool:
        try:
            async with asyncio.timeout(5):
                await self._send(Shutdown())
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def watch(self) -> None:
        """Take in what the engine says, until it ends. Then every open request has got an error."""
        listening = asyncio.create_task(self._listen())
        await self._process.wait()
        # A last word, such as Failed, may still be in the socket.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(listening), 0.2)
        listening.cancel()
        self.failure = self.failure or f"{DEAD[:-1]} with exit status {self._process.returncode}."
        log.error("engine process ended", status=self._process.returncode)
        self.fail_open_requests(self.failure)

    @property
    def open_requests(self) -> int:
        return len(self._open)

    async def generate(self, message: Generate) -> AsyncGenerator[Output, None]:
        """The request's outputs, to the one with a finish reason. Left early, it is aborted."""
        outputs: asyncio.Queue[Output] = asyncio.Queue()
        if self.failure is not None:
            yield Output(id=message.id, finish_reason=FinishReason.ERROR, error=self.failure)
            return
        self._open[message.id] = outputs
        self._idle.clear()
        finished = False
        try:
            await self._send(message)
            while not finished:
                output = await outputs.get()
                finished = output.finish_reason is not None
                yield output
        finally:
            del self._open[message.id]
            if not self._open:
                self._idle.set()
            if not finished and self.failure is None:
                # Not awaited: a cancelled task could not send any more. The socket's queue has no limit.
                self._requests.send(self._encoder.encode(Abort([message.id])), zmq.DONTWAIT)

    def fail_open_requests(self, reason: str) -> None:
        """Give each open request an error as its last output."""
        for request_id in self._open:
            self._deliver(Output(id=request_id, finish_reason=FinishReason.ERROR, error=reason))

    async def until_ready(self) -> Ready:
        """Wait for the weights; for ever, where they never come."""
        await self._became_ready.wait()
        assert self.ready is not None
        return self.ready

    async def until_idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    async def _send(self, message: Request) -> None:
        await self._requests.send(self._encoder.encode(message))

    async def _listen(self) -> None:
        while True:
            self._take(self._decoder.decode(await self._replies.recv()))

    def _take(self, reply: Reply) -> None:
        self.heard_at = time.monotonic()
        match reply:
            case Outputs(outputs):
                for output in outputs:
                    self._deliver(output)
            case Stats():
                self.stats = reply
                self.unseen_stats.put_nowait(reply)
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
        queue = self._open.get(output.id)
        if queue is not None:
            queue.put_nowait(output)
