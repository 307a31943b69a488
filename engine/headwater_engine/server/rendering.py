"""Chat templates are rendered in processes of their own: few, watched, and started again where they end.

See `template_process.py` for why. Nothing here waits in a thread, so whatever a template does, the server ends when it
is told to.
"""

import asyncio
import json
import socket
import subprocess
import sys
from typing import Any

from headwater.openai.errors import BadRequestError, InternalServerError
from headwater.openai.errors import ServiceUnavailableError as Unavailable
from headwater_engine.errors import LoadError
from headwater_engine.server.template_process import LENGTH, MEMORY

PROCESSES = 2
"""At most: a conversation that takes long does not stop the others."""
WAITING = 256
"""Conversations that are being rendered or wait for it."""
CPU_SECONDS = 5.0
"""Of one conversation. A thousand messages take some milliseconds."""
PATIENCE = 60.0
"""Seconds for one conversation on a machine where others have the CPU."""

_TOO_MUCH = f"it needs more than {CPU_SECONDS:.0f} seconds of CPU time or {MEMORY >> 30} GiB of memory"


class Renderer:
    """Asks the processes. Belongs to one event loop, but for `__init__`."""

    def __init__(self, program: dict[str, Any]) -> None:
        """`program`: the arguments of `Templates`. Blocking, and not for a thread with an event loop.

        Raises LoadError where the template cannot be used.
        """
        self._program = program
        self._processes = [_Process() for _ in range(PROCESSES)]
        self._idle = list(reversed(self._processes))
        self._turns = asyncio.Semaphore(PROCESSES)
        self._open = 0
        self._closed = False
        first = self._idle[-1]
        first.start()
        answer = asyncio.run(first.ask(program))
        if answer is None or "error" in answer:
            first.end()
            raise LoadError(f"The chat template cannot be used: {answer['error'] if answer else _TOO_MUCH}.")
        self.control_tokens: list[str] = answer["control_tokens"]
        self.calls_as: list[str] = answer["calls_as"]
        """What the template writes of a call, as of `messages.calls_as`."""
        self.shows_tools: bool = answer["shows_tools"]
        """Whether tools are in the template's prompts; else they are described in words."""

    async def render(self, conversation: dict[str, Any]) -> str:
        """The prompt; `conversation` are the arguments of `Templates.render`. Raises BadRequestError or Unavailable."""
        if self._open >= WAITING:
            raise Unavailable(f"{WAITING} conversations are being rendered.", code="overloaded", retry_after=1)
        self._open += 1
        try:
            async with self._turns:
                process = self._idle.pop()  # the one that was used last, so that the second starts only when needed
                try:
                    self._check_not_closed()
                    answer = await self._ask(process, conversation)
                    self._check_not_closed()
                finally:
                    self._idle.append(process)
        finally:
            self._open -= 1
        if answer is None or "error" in answer:
            reason = answer["error"] if answer else _TOO_MUCH
            raise BadRequestError(f"The chat template failed: {reason}", param="messages")
        return str(answer["text"])

    async def _ask(self, process: "_Process", conversation: dict[str, Any]) -> dict[str, Any] | None:
        """None: the process ended on it."""
        try:
            if not process.runs:
                process.start()
                if await process.ask(self._program) is None:
                    self._check_not_closed()
                    raise InternalServerError("The process that renders chat templates ended as it started.")
            async with asyncio.timeout(PATIENCE):
                answer = await process.ask(conversation)
        except TimeoutError:
            process.end()
            raise InternalServerError(f"The chat template gave no answer in {PATIENCE:.0f} seconds.") from None
        except BaseException:
            process.end()  # cancelled, say: it would answer to the next one
            raise
        if answer is None:
            process.end()
        return answer

    def _check_not_closed(self) -> None:
        if self._closed:
            raise Unavailable("This engine is about to end.", code="draining", retry_after=1)

    def close(self) -> None:
        """Who still waits gets Unavailable."""
        self._closed = True
        for process in self._processes:
            if process in self._idle:
                process.end()
            else:
                process.kill()


class _Process:
    """One process, or none yet."""

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.end()  # what is left, should it have ended by itself
        self._link, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "headwater_engine.server.template_process", str(number), str(CPU_SECONDS)]
            # A Ctrl-C is for the server, which ends it.
            self._process = subprocess.Popen(command, pass_fds=[number], process_group=0)

    def kill(self) -> None:
        """Whoever asks it hears of it."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._link is not None:
            self._link.close()
            self._link = None

    async def ask(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """None where the process ends before it answers."""
        assert self._link is not None
        self._link.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._link, _message(order))
            (length,) = LENGTH.unpack(await self._receive(LENGTH.size))
            return dict(json.loads(await self._receive(length)))
        except (ConnectionError, EOFError):
            return None

    async def _receive(self, length: int) -> bytes:
        assert self._link is not None
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = await asyncio.get_running_loop().sock_recv_into(self._link, view)
            if count == 0:
                raise EOFError
            view = view[count:]
        return bytes(data)


def _message(order: dict[str, Any]) -> bytes:
    data = json.dumps(order).encode()
    return LENGTH.pack(len(data)) + data
