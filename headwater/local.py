"""The local runtime behind `headwater up`: a ModelDeployment as processes on this machine.

One supervisor, and under it the router and the engine replicas, each in a session of its own, so that Ctrl-C reaches
only the supervisor, which then stops them in the right order: the router first, whose answers need the engines to end.
If the supervisor is killed, the kernel tells the others.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from headwater import backends
from headwater.backoff import Backoff
from headwater.display import Display
from headwater.resource import ModelDeployment, ResourceError, load

_LOOK_EVERY = 0.25
"""Seconds between two looks at a process that is not ready."""
_KILL_AFTER = 60.0
"""Seconds that a process gets to stop after SIGTERM; its own time for draining is shorter."""
_LOG_LINES = 15
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True, eq=False)
class Process:
    """One child: what it is, and how it is doing."""

    name: str
    command: list[str]
    port: int
    ready_path: str
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    status: str = "starting"
    fraction: float = 0.0
    was_ready: bool = False
    running: asyncio.subprocess.Process | None = None
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.status, self.fraction = "starting", 0.0
        with self.log.open("ab") as log:
            self.running = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | dict(self.environment),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    async def look(self, client: httpx.AsyncClient) -> None:
        """Ask it how far it is."""
        try:
            answer = await client.get(self.url + self.ready_path)
            body = answer.json() if answer.content else {}
        except (httpx.HTTPError, ValueError):
            return
        if answer.status_code == 200:
            self.status, self.fraction, self.was_ready = "ready", 1.0, True
        elif isinstance(body, dict) and "fraction" in body:
            self.status, self.fraction = f"loading {body.get('phase', '')}".strip(), float(body["fraction"])

    def signal(self, number: signal.Signals) -> None:
        if self.running is not None and self.running.returncode is None:
            self.running.send_signal(number)

    def kill(self) -> None:
        """With all its children."""
        if self.running is not None and self.running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)

    def last_lines(self) -> str:
        with self.log.open(errors="replace") as log:
            return "".join(deque(log, _LOG_LINES)).rstrip()


def _end_with_parent() -> None:
    """Runs in the child, before its program: have the kernel send SIGTERM when the parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def up(file: Path, *, host: str, port: int, state: Path) -> int:
    """Run what `file` describes until a signal. Returns the exit status. Raises ResourceError."""
    deployments = load(file)
    _check_port(host, port)
    folder = state / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    replicas = plan_replicas(deployments, folder, cores=len(os.sched_getaffinity(0)))
    router = plan_router(deployments, replicas, folder, host=host, port=port)
    return asyncio.run(_Supervisor(router, [process for process, _ in replicas], folder).run())


Endpoint = dict[str, str]


def plan_replicas(
    deployments: Sequence[ModelDeployment], folder: Path, *, cores: int
) -> list[tuple[Process, Endpoint]]:
    """The engine processes, and what the router is told of each. Raises ResourceError."""
    names = [name for deployment in deployments for name in deployment.served_names]
    twin = next((name for name in names if names.count(name) > 1), None)
    if twin is not None:
        raise ResourceError(f"two deployments serve the name {twin!r}")
    total = sum(deployment.spec.first_replicas for deployment in deployments)
    if total == 0:
        raise ResourceError("there is nothing to run: all deployments have 0 replicas")
    threads = threads_each(cores, total)
    ports = iter(_free_ports(2 * total))
    planned = []
    for deployment in deployments:
        backend = backends.get(deployment.spec.backend.type)
        for number in range(deployment.spec.first_replicas):
            port = next(ports)
            events_port = next(ports) if backend.publishes_kv_events else None
            name = f"{deployment.name}-{number}"
            environment = {"OMP_NUM_THREADS": str(threads), "HEADWATER_ENGINE_THREADS": str(threads)}
            process = Process(
                name,
                backend.command(deployment, port=port, events_port=events_port),
                port,
                backend.ready_path,
                folder / f"{name}.log",
                environment | dict(backend.environment(deployment)),
            )
            endpoint = {"url": process.url, "name": name, "backend": backend.name}
            if events_port is not None:
                endpoint["kv_events"] = f"tcp://127.0.0.1:{events_port}"
            planned.append((process, endpoint))
    return planned


def threads_each(cores: int, replicas: int) -> int:
    """More threads than cores would only wait for one another."""
    return max(1, cores // replicas)


def plan_router(
    deployments: Sequence[ModelDeployment],
    replicas: Sequence[tuple[Process, Endpoint]],
    folder: Path,
    *,
    host: str,
    port: int,
) -> Process:
    """The router process; writes the list of endpoints that it reads. Raises ResourceError."""
    policies = {deployment.spec.routing.policy for deployment in deployments}
    if len(policies) > 1:
        raise ResourceError(
            f"spec.routing.policy: one local router has one policy; found {', '.join(sorted(policies))}"
        )
    endpoints = folder / "endpoints.json"
    endpoints.write_text(json.dumps([endpoint for _, endpoint in replicas], indent=2))
    command = [sys.executable, "-m", "headwater", "route", "--host", host, "--port", str(port)]
    command += ["--policy", policies.pop(), "--endpoints-file", str(endpoints)]
    return Process("router", command, port, "/ready", folder / "router.log")


def _free_ports(count: int) -> list[int]:
    """Distinct, since all are held until the last is found."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None


class _Supervisor:
    """Starts, watches, restarts and stops."""

    def __init__(self, router: Process, engines: Sequence[Process], folder: Path) -> None:
        self._router = router
        self._engines = engines
        self._folder = folder
        self._stop = asyncio.Event()
        self._hopeless: Process | None = None
        self._signals = 0

    @property
    def _all(self) -> list[Process]:
        return [*self._engines, self._router]

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        with Display() as display:
            display.say(f"logs: {self._folder}/*.log")
            try:
                async with httpx.AsyncClient(timeout=5) as client, asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._keep_running(process, display)) for process in self._all]
                    tasks.append(group.create_task(self._show(client, display)))
                    await self._stop.wait()
                    for task in tasks:
                        task.cancel()
            finally:
                await self._end(display)
            if self._hopeless is not None:
                display.say(f"{self._hopeless.name} did not start. The end of {self._hopeless.log}:")
                display.say(self._hopeless.last_lines())
        return 1 if self._hopeless is not None else 0

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            for process in self._all:
                process.kill()

    async def _keep_running(self, process: Process, display: Display) -> None:
        process.log.write_bytes(b"")
        while True:
            started = time.monotonic()
            await process.start()
            assert process.running is not None
            status = await process.running.wait()
            if not process.was_ready:
                # It would fail again the same way, and somebody is watching.
                self._hopeless = process
                self._stop.set()
                return
            pause = process.backoff.died(time.monotonic() - started)
            process.status, process.fraction = f"ended with status {status}, starts again in {pause:.0f} s", 0.0
            display.update(self._all)
            await asyncio.sleep(pause)

    async def _show(self, client: httpx.AsyncClient, display: Display) -> None:
        announced = False
        while True:
            for process in self._all:
                if process.status != "ready":
                    await process.look(client)
            display.update(self._all)
            if not announced and all(process.status == "ready" for process in self._all):
                announced = True
                display.say(f"ready: {self._router.url}/v1   (Ctrl-C stops)")
            await asyncio.sleep(_LOOK_EVERY)

    async def _end(self, display: Display) -> None:
        """The router first: while it drains, the engines must go on."""
        for group in ([self._router], list(self._engines)):
            for process in group:
                if process.running is not None and process.running.returncode is None:
                    process.status = "stopping"
                    process.signal(signal.SIGTERM)
            display.update(self._all)
            await asyncio.gather(*(self._await_end(process) for process in group))
        display.update(self._all)

    async def _await_end(self, process: Process) -> None:
        if process.running is None:
            return
        try:
            await asyncio.wait_for(process.running.wait(), _KILL_AFTER)
        except TimeoutError:
            process.kill()
            await process.running.wait()
        process.status = "stopped"
