"""One child process of `headwater up`: a command in a session of its own, its log, and how it is doing.

In a session of its own Ctrl-C does not reach it, and it can be killed with all its children. If its parent is killed,
the kernel tells it.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from headwater.backoff import Restarts

_KILL_AFTER = 60.0
"""Seconds that a process gets to stop after SIGTERM; its own time for draining is shorter."""
_LOG_LINES = 15
_PR_SET_PDEATHSIG = 1

# Loaded here, because a forked child must not load libraries.
_libc = ctypes.CDLL(None)


@dataclass(slots=True, eq=False)
class Process:
    name: str
    command: list[str]
    url: str
    ready_path: str
    """Answers 200 once it is ready, perhaps with `{"kernels"}`; until then with `{"status", "phase", "fraction"}`."""
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    status: str = "starting"
    fraction: float = 0.0
    """Of the start, 0 to 1."""
    kernels: str = ""
    """What it computes with, where it says so: why it is slow may stand there."""
    was_ready: bool = False
    """Once at least, in this life or one before."""
    running: asyncio.subprocess.Process | None = None
    restarts: Restarts = field(default_factory=Restarts)

    async def start(self) -> None:
        """Raises OSError where the program is not there."""
        self.status, self.fraction = "starting", 0.0
        parent = os.getpid()
        with self.log.open("ab") as log:
            self.running = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | dict(self.environment),
                start_new_session=True,
                preexec_fn=lambda: _end_with(parent),
            )

    async def until_end(self) -> int:
        """Its exit status, negative for a signal. What it leaves behind is killed: it may hold ports and memory."""
        assert self.running is not None
        status = await self.running.wait()
        _kill_group(self.running.pid)
        return status

    async def look(self, client: httpx.AsyncClient) -> None:
        """Ask it how far it is."""
        try:
            answer = await client.get(self.url + self.ready_path)
            body = answer.json() if answer.content else {}
        except (httpx.HTTPError, ValueError):
            return
        body = body if isinstance(body, dict) else {}
        if answer.status_code == 200:
            self.status, self.fraction, self.was_ready = "ready", 1.0, True
            self.kernels = str(body.get("kernels", ""))
        elif isinstance(body.get("status"), str):
            self.status = " ".join(filter(None, (body["status"], body.get("phase"))))
            self.fraction = float(body.get("fraction", 0.0))

    @property
    def state(self) -> str:
        """The status, as it is shown."""
        return f"{self.status} ({self.kernels})" if self.status == "ready" and self.kernels else self.status

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.returncode is None

    async def stop(self) -> None:
        """Let it finish what it does, but not for ever."""
        if self.running is None or not self.alive:
            return
        self.running.terminate()
        try:
            async with asyncio.timeout(_KILL_AFTER):
                await self.until_end()
        except TimeoutError:
            self.kill()
            await self.until_end()
        self.status = "stopped"

    def kill(self) -> None:
        """With all its children, at once."""
        if self.running is not None and self.alive:
            _kill_group(self.running.pid)

    def last_lines(self) -> str:
        with self.log.open(errors="replace") as log:
            return "".join(deque(log, _LOG_LINES)).rstrip()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _end_with(parent: int) -> None:
    """Runs in the child, before its program: have the kernel send SIGTERM when the parent dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be waited for
        os.kill(os.getpid(), signal.SIGTERM)
