"""Keeps the processes of `headwater up` running: starts, shows, restarts, and stops them in the right order."""

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from headwater.cli.local.display import Display
from headwater.cli.local.process import Process

FAILED = 1
KILLED = 130
"""As a shell says of a command that Ctrl-C ended."""

_LOOK_EVERY = 0.25
"""Seconds between two looks at a process that is not ready."""


class Supervisor:
    """One router, and the engines that it routes to."""

    def __init__(
        self,
        router: Process,
        engines: Sequence[Process],
        logs: Path,
        file: Path,
        display: Display,
        models: Sequence[str],
    ) -> None:
        """`file`: what all this was planned from; a change of it is said, and not followed."""
        self._display = display
        self._models = models
        self._router = router
        self._engines = engines
        self._logs = logs
        self._file = file
        self._planned = _state(file)
        self._stop = asyncio.Event()
        self._hopeless: tuple[Process, str] | None = None
        """One that ended before it was ever ready, and why; its log says that where nothing else does."""
        self._signals = 0

    @property
    def _all(self) -> list[Process]:
        return [*self._engines, self._router]

    async def run(self) -> int:
        """Until a signal, or until a process does not start. Returns the exit status."""
        loop = asyncio.get_running_loop()
        with self._display as display:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._on_signal, display)
            display.say(f"logs: {self._logs}/*.log")
            try:
                # What is asked is here: a proxy knows nothing of it.
                async with httpx.AsyncClient(timeout=5, trust_env=False) as client, asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._keep_running(process, display)) for process in self._all]
                    tasks.append(group.create_task(self._show(client, display)))
                    await self._stop.wait()
                    for task in tasks:
                        task.cancel()
            finally:
                await self._stop_all(display)
            if self._hopeless is not None:
                process, reason = self._hopeless
                display.say(f"{process.name} did not start. {reason or f'The end of {process.log}:'}")
                if not reason:
                    display.say(process.last_lines())
                return FAILED
        return KILLED if self._signals > 1 else 0

    def _on_signal(self, display: Display) -> None:
        self._signals += 1
        if self._signals == 1:
            display.say("stopping once the running answers are done; a second Ctrl-C stops at once")
            self._stop.set()
        else:
            for process in self._all:
                process.kill()

    async def _keep_running(self, process: Process, display: Display) -> None:
        begun = False
        while True:
            started = time.monotonic()
            try:
                if not begun:
                    process.log.write_bytes(b"")
                await process.start()
                begun = True
            except OSError as error:
                # The log may be what cannot be written.
                self._give_up(process, f"{error.filename or process.command[0]}: {error.strerror}")
                return
            status = await process.until_end()
            if not process.was_ready:
                # It would fail again the same way, and somebody is watching.
                process.status = f"ended with status {status}"
                self._give_up(process)
                return
            pause = process.restarts.died(time.monotonic() - started)
            process.status, process.fraction = f"ended with status {status}, starts again in {pause:.0f} s", 0.0
            display.update(self._all)
            await asyncio.sleep(pause)

    def _give_up(self, process: Process, reason: str = "") -> None:
        self._hopeless = self._hopeless or (process, reason)
        self._stop.set()

    async def _show(self, client: httpx.AsyncClient, display: Display) -> None:
        announced = False
        while True:
            for process in self._all:
                if process.status != "ready" and process.alive:
                    await process.look(client)
            display.update(self._all)
            if (state := _state(self._file)) != self._planned:
                self._planned = state
                display.say(f"{self._file.name} was changed; Ctrl-C and another headwater up do what it says now")
            if not announced and all(process.status == "ready" for process in self._all):
                announced = True
                display.ready(f"{self._router.url}/v1", self._models)
            await asyncio.sleep(_LOOK_EVERY)

    async def _stop_all(self, display: Display) -> None:
        """The router first: while it drains, the engines must go on."""
        for processes in ([self._router], self._engines):
            for process in processes:
                if process.alive:
                    process.status = "stopping"
            display.update(self._all)
            await asyncio.gather(*(process.stop() for process in processes))
        display.update(self._all)


def _state(file: Path) -> tuple[int, int] | None:
    """What changes with a file; None while it is not there."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size
