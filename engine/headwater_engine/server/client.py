"""The HTTP process's side of the engine process: starts it with its ranks, asks it, and hands its answers out.

Answers are handed out in the callback in which they are read: what is done with a token is a call, not a task.
"""

import asyncio
import contextlib
import math
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog
import zmq

from headwater_engine.config import EngineSettings
from headwater_engine.core.messages import (
    Abort,
    Embed,
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
    Tokenizer,
)
from headwater_engine.distributed.group import Group, ranks_in_words, start_ranks
from headwater_engine.distributed.place import Meeting
from headwater_engine.distributed.rendezvous import Leader
from headwater_engine.errors import RendezvousError, StartError
from headwater_engine.server.private_folder import private_folder
from headwater_engine.server.start import Logged, Start

log = structlog.get_logger(__name__)

Take = Callable[[Output], None]

_AT_ONCE: Final = 100
"""Messages that are taken in before others get their turn."""
_TO_LEAVE: Final = 5.0
"""Seconds that an engine process gets to end by itself, where there is time for it."""


def _ignore(stats: Stats) -> None:
    """Nobody asks for metrics."""


class EngineClient:
    """An async context: the engine process lives inside it, and so do all ranks here. `watch` must run as a task."""

    def __init__(
        self,
        settings: EngineSettings,
        command: list[str] | None = None,
        on_stats: Callable[[Stats], None] = _ignore,
        start: Start | None = None,
    ) -> None:
        """`command`: what to run instead of the engine process, with the two endpoints added.

        `on_stats`: called with each Stats once, in their order. `start`: is told how far the start is; else the log.
        """
        self._start_shown = start or Logged()
        self.settings = settings
        self._command = command or [sys.executable, "-m", "headwater_engine.core"]
        self._on_stats = on_stats
        self.group = Group(alone=settings.tensor_parallel_size == 1)
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

    async def __aenter__(self) -> Self:
        """Raises StartError."""
        try:
            folder = self._stack.enter_context(private_folder())
        except OSError as error:
            raise StartError(f"The engine process gets no folder to be reached in: {error.strerror}.") from error
        requests, replies = f"ipc://{folder}/requests", f"ipc://{folder}/replies"
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.setsockopt(zmq.SNDHWM, 0)
        self._requests.bind(requests)
        self._replies = self._context.socket(zmq.PULL)
        self._replies.setsockopt(zmq.RCVHWM, 0)
        self._replies.bind(replies)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._replies.fileno(), self._receive)
        self._command += [requests, replies]
        if self.settings.nodes == 1:
            try:
                await self._start(folder_meeting(folder))
            except StartError:
                await self.__aexit__(None, None, None)
                raise
        return self

    async def _start(self, meeting: Meeting) -> None:
        await start_ranks(self.group, self.settings, meeting, self._command)

    async def _meet(self) -> None:
        """Wait for the other machines. Raises RendezvousError or StartError."""
        meeting, lines = await Leader(self.settings).gather(self._say_loading)
        await self._start(meeting)
        each = self.settings.tensor_parallel_size // self.settings.nodes
        for node, line in lines.items():
            self.group.join(f"Node {node}, with {ranks_in_words(node * each, each)},", line)

    def _say_loading(self, phase: str) -> None:
        self._take(Loading(0.0, phase))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # While it loads it hears nothing, and has nothing to lose.
        if self.ready is not None and self.failure is None:
            await self._leave()
        await self.group.end("")
        self._loop.remove_reader(self._replies.fileno())
        self._context.destroy(linger=0)
        await self._stack.aclose()

    async def _leave(self) -> None:
        """Have the engine process end by itself, if it does in time."""
        if self._send(Shutdown()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_TO_LEAVE, self.leaves_by - self._loop.time())):
                    await self.group.processes[0].wait()

    async def watch(self) -> None:
        """Until the engine process or another rank ends. Then every open request has got an error."""
        try:
            if self.settings.nodes > 1:
                await self._meet()
            reason = await self.group.watch()
        except (RendezvousError, StartError) as error:
            reason = str(error)
        self.failure = self.failure or reason  # It may have said Failed, which says more.
        log.error("engine ended", reason=self.failure)
        self.fail_open_requests(self.failure)

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def ask(self, message: Generate | Embed, take: Take) -> None:
        """Have `take`, which raises nothing, called with each of the request's outputs, up to one that finishes it."""
        self._open[message.id] = take
        if self.failure is not None:
            self._fail(message.id, self.failure)
        elif not self._send(message):
            self._fail(message.id, "The engine process takes no requests.")

    def tell_tokenizer(self, text: str, eos_token_ids: tuple[int, ...]) -> None:
        """As of `Tokenizer`. The engine is ready."""
        self._send(Tokenizer(text, eos_token_ids))

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
                self._start_shown.loading(reply)
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


def folder_meeting(folder: Path) -> Meeting:
    """Of ranks on one machine."""
    return Meeting(f"file://{folder}/store", f"ipc://{folder}/steps", secrets.token_hex())
