"""`headwater up`: it plans, starts, shows, restarts and stops, and leaves no process behind.

The engines are a quick stand-in for `transformers serve`; supervisor and router are the real ones.
"""

import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from headwater.backoff import RESTARTING, STEADY, Restarts
from headwater.cli import main
from headwater.cli.local.display import Text
from headwater.cli.local.plan import plan_replicas, plan_router, threads_each
from headwater.cli.local.process import Process
from headwater.resource import ResourceError, load
from headwater_router.endpoints.endpoint import EndpointSpec

FAKE = Path(__file__).with_name("fake_transformers.py")
MODEL = "fake/model"
DEPLOYMENT = f"""\
apiVersion: headwater.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: pair}}
spec:
  model: {{source: "hf://{MODEL}", aliases: ["{MODEL}"]}}
  backend: {{type: transformers}}
  replicas: 2
  routing: {{policy: round_robin}}
"""
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


# Plans


def deployments(tmp_path: Path, text: str):
    file = tmp_path / "model.yaml"
    file.write_text(text)
    return load(file)


def test_a_flag_that_the_router_relies_on_is_refused(tmp_path: Path) -> None:
    text = DEPLOYMENT.replace("{type: transformers}", '{type: transformers, args: ["--port", "9"]}')
    with pytest.raises(ResourceError, match=r"spec\.backend\.args: .* gets --port from Headwater"):
        plan_replicas(deployments(tmp_path, text), tmp_path, cores=2)


def ours(name: str, replicas: int, **spec: object) -> str:
    body = {"model": {"source": "random:tiny"}, "replicas": replicas} | spec
    resource = {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}}
    return json.dumps(resource | {"spec": body})


@pytest.mark.parametrize(("cores", "replicas", "threads"), [(8, 2, 4), (5, 2, 2), (2, 2, 1), (1, 4, 1)])
def test_replicas_share_the_cores(cores: int, replicas: int, threads: int, tmp_path) -> None:
    assert threads_each(cores, replicas) == threads
    for replica in plan_replicas(deployments(tmp_path, ours("a", replicas)), tmp_path, cores=cores):
        assert replica.process.environment["OMP_NUM_THREADS"] == str(threads)
        assert replica.process.environment["HEADWATER_ENGINE_THREADS"] == str(threads)


def test_the_environment_of_the_resource_wins(tmp_path) -> None:
    text = ours("a", 1, backend={"env": {"OMP_NUM_THREADS": "7"}})
    (replica,) = plan_replicas(deployments(tmp_path, text), tmp_path, cores=2)
    assert replica.process.environment["OMP_NUM_THREADS"] == "7"


def test_every_port_is_used_once(tmp_path) -> None:
    text = f"{ours('a', 3)}\n---\n{ours('b', 2)}"
    replicas = plan_replicas(deployments(tmp_path, text), tmp_path, cores=2)
    assert [replica.process.name for replica in replicas] == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert len({replica.endpoint["url"] for replica in replicas}) == 5
    assert len({replica.endpoint["kv_events"] for replica in replicas}) == 5


@pytest.mark.parametrize(("policy", "published"), [("prefix", True), ("session", False)])
def test_events_are_published_where_the_router_reads_them(policy: str, published: bool, tmp_path) -> None:
    plan = deployments(tmp_path, ours("a", 1, routing={"policy": policy}))
    (replica,) = plan_replicas(plan, tmp_path, cores=2)
    assert ("kv_events" in replica.endpoint) is published
    assert ("--kv-events" in replica.process.command) is published


@pytest.mark.parametrize("server", ["headwater", "vllm", "sglang"])
def test_what_a_server_publishes_is_for_this_user_alone(server: str, tmp_path) -> None:
    backend = {"backend": {"type": server}, "model": {"source": "hf://owner/model"}} if server != "headwater" else {}
    (replica,) = plan_replicas(deployments(tmp_path, ours("a", 1, **backend)), tmp_path, cores=2)
    events = replica.endpoint["kv_events"]
    assert events == f"ipc://{tmp_path}/a-0.events"
    command = " ".join(replica.process.command)
    assert events in command
    assert "tcp://" not in command


@pytest.mark.parametrize(("groups", "folder"), [(2, "."), (1, "f" * 100)])
def test_where_there_can_be_no_socket_nothing_is_published(groups: int, folder: str, tmp_path) -> None:
    many = {"backend": {"type": "vllm"}, "model": {"source": "hf://owner/model"}, "parallelism": {"data": groups}}
    plan = deployments(tmp_path, ours("a", 1, **many))
    (replica,) = plan_replicas(plan, tmp_path / folder, cores=2)
    assert "kv_events" not in replica.endpoint
    assert "--kv-events" not in replica.process.command


def test_the_router_reads_where_the_replicas_are(tmp_path) -> None:
    plan = deployments(tmp_path, ours("a", 2, routing={"policy": "session"}))
    replicas = plan_replicas(plan, tmp_path, cores=2)
    router = plan_router(plan, replicas, tmp_path, host="0.0.0.0", port=8080)
    assert "--policy session" in " ".join(router.command)
    assert router.url == "http://127.0.0.1:8080"
    file = Path(router.command[router.command.index("--endpoints-file") + 1])
    assert json.loads(file.read_text()) == [replica.endpoint for replica in replicas]


def test_a_server_that_knows_no_name_is_reached_by_that_of_its_resource(tmp_path) -> None:
    model = {"source": "file:///models/m"}
    (replica,) = plan_replicas(
        deployments(tmp_path, ours("a", 1, backend={"type": "tgi"}, model=model)), tmp_path, cores=2
    )
    assert EndpointSpec.of(replica.endpoint).model == "a"
    (other,) = plan_replicas(deployments(tmp_path, ours("a", 1)), tmp_path, cores=2)
    assert EndpointSpec.of(other.endpoint).model == ""


def test_deployments_of_one_name_share_it_as_they_say(tmp_path) -> None:
    model = {"source": "random:tiny", "aliases": ["both"]}
    routing = {"weight": 30, "share": "Auto"}
    text = f"{ours('a', 1, model=model, routing=routing)}\n---\n{ours('b', 1, model=model)}"
    first, second = plan_replicas(deployments(tmp_path, text), tmp_path, cores=2)
    assert {"deployment": "a", "weight": "30", "share": "Auto"}.items() <= first.endpoint.items()
    assert {"deployment": "b", "weight": "100", "share": "Weight"}.items() <= second.endpoint.items()
    for replica in (first, second):
        assert EndpointSpec.of(replica.endpoint).group.name == replica.endpoint["deployment"]
        assert "both" in replica.process.command


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ours("a", 0), "nothing to run"),
        (ours("a", 1, backend={"type": "tgi"}), "a: spec.model.source: the tgi backend loads hf://, file:// here"),
        (f"{ours('a', 1)}\n---\n{ours('b', 1, routing={'policy': 'session'})}", "found prefix, session"),
    ],
)
def test_what_cannot_run_here_is_refused(text: str, message: str, tmp_path) -> None:
    plan = deployments(tmp_path, text)
    with pytest.raises(ResourceError, match=re.escape(message)):
        plan_router(plan, plan_replicas(plan, tmp_path, cores=2), tmp_path, host="127.0.0.1", port=1)


def test_each_restart_waits_longer_up_to_a_limit() -> None:
    restarts = Restarts()
    pauses = [restarts.died(lived=1.0) for _ in range(10)]
    assert pauses[:4] == [RESTARTING.first, 2 * RESTARTING.first, 4 * RESTARTING.first, 8 * RESTARTING.first]
    assert pauses == sorted(pauses)
    assert pauses[-1] == RESTARTING.longest


def test_a_steady_life_forgives_earlier_deaths() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.died(lived=1.0)
    assert restarts.died(lived=STEADY) == RESTARTING.first
    assert restarts.died(lived=1.0) == 2 * RESTARTING.first


async def test_what_an_engine_computes_with_is_shown_once_it_is_ready(tmp_path: Path) -> None:
    """The log file, where the reason for slow kernels stands, too, is read by nobody who does not ask why."""
    answers = [
        (503, {"status": "loading", "kernels": "unknown"}),
        (200, {"kernels": "cpu-torch: no C++ compiler found"}),
    ]
    process = Process("a-0", [], "http://engine", "/ready", tmp_path / "log")
    shown = io.StringIO()
    display = Text(Console(file=shown))
    transport = httpx.MockTransport(lambda request: httpx.Response(answers[0][0], json=answers.pop(0)[1]))
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(2):
            await process.look(client)
            display.update([process])
    assert shown.getvalue().splitlines() == ["a-0: loading", "a-0: ready (cpu-torch: no C++ compiler found)"]


# Runs


@dataclass(slots=True)
class Up:
    """`headwater up` with two of the fakes behind it."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def lives(self) -> list[int]:
        file = self.folder / "lives"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    def wait_until_said(self, text: str) -> None:
        wait_until(lambda: text in self.said, f"it says {text!r}", self)

    def family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]


def wait_until(condition: Callable[[], bool], what: str, up: Up, timeout: float = 60) -> None:
    """Poll, since the processes under test have no other way to tell."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain until {what}; it said:\n{up.said}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    program = tmp_path / "bin" / "transformers"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "pair.yaml").write_text(DEPLOYMENT)
    (tmp_path / "loaded").write_text("1.0")
    started: list[subprocess.Popen[bytes]] = []

    def start() -> Up:
        port = free_port()
        command = [sys.executable, "-m", "headwater", "up", "pair.yaml", "--port", str(port)]
        environment = os.environ | {
            "FAKE_FOLDER": str(tmp_path),
            "PATH": f"{program.parent}:{os.environ['PATH']}",
        }
        with (tmp_path / "said").open("wb") as said:
            started.append(subprocess.Popen(command, stderr=said, cwd=tmp_path, env=environment))
        return Up(started[-1], port, tmp_path)

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


@pytest.fixture
def up(start: Callable[[], Up]) -> Up:
    running = start()
    running.wait_until_said("ready: http://")
    wait_until(
        lambda: httpx.get(f"{running.url}/ready").json()["ready_endpoints"] == 2, "the router knows both", running
    )
    return running


def assert_all_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_it_shows_how_much_of_the_weights_is_loaded(start: Callable[[], Up], tmp_path: Path) -> None:
    (tmp_path / "loaded").write_text("0.25")
    up = start()
    up.wait_until_said("pair-0: loading weights 25%")
    up.wait_until_said("pair-1: loading weights 25%")
    (tmp_path / "loaded").write_text("0.75")
    up.wait_until_said("pair-1: loading weights 75%")
    (tmp_path / "loaded").write_text("1.0")
    up.wait_until_said("ready: http://")


def test_it_serves_restarts_what_dies_and_stops_clean(up: Up) -> None:
    served_by = {httpx.post(f"{up.url}/v1/chat/completions", json=QUESTION).json()["pid"] for _ in range(4)}
    assert served_by == set(up.lives())
    assert len(served_by) == 2

    victim = up.lives()[0]
    os.kill(victim, signal.SIGKILL)
    up.wait_until_said("ended with status -9, starts again in 1 s")
    wait_until(lambda: len(up.lives()) == 3, "it is started again", up)
    newcomer = up.lives()[-1]

    def answers_from_newcomer() -> bool:
        answer = httpx.post(f"{up.url}/v1/chat/completions", json=QUESTION)
        assert answer.status_code == 200, "the other replica serves meanwhile"
        return bool(answer.json()["pid"] == newcomer)

    wait_until(answers_from_newcomer, "the newcomer serves", up)

    family = up.family()
    assert len(family) == 4
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(30) == 0
    assert_all_gone(family)
    assert "pair-0: stopped" in up.said
    assert "Traceback" not in up.said + (up.folder / ".headwater/pair/router.log").read_text()


def test_a_stream_ends_whole_before_it_stops(up: Up) -> None:
    family = up.family()
    with httpx.stream("POST", f"{up.url}/v1/chat/completions", json=QUESTION | {"stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        up.process.send_signal(signal.SIGTERM)
        up.wait_until_said("router: stopping")
        (up.folder / "release").touch()
        assert "data: [DONE]" in list(lines)
    assert up.process.wait(30) == 0
    assert_all_gone(family)


def test_a_second_ctrl_c_waits_for_no_stream(up: Up) -> None:
    family = up.family()
    with httpx.stream("POST", f"{up.url}/v1/chat/completions", json=QUESTION | {"stream": True}) as answer:
        lines = answer.iter_lines()  # kept: a generator that is collected closes the connection
        assert next(lines).startswith("data: ")
        up.process.send_signal(signal.SIGINT)
        up.wait_until_said("router: stopping")
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(30) == 130
    assert_all_gone(family)


def test_nothing_outlives_a_killed_supervisor(up: Up) -> None:
    family = up.family()
    up.process.kill()
    assert_all_gone(family)


def test_a_file_that_is_up_already_is_refused(up: Up, start: Callable[[], Up]) -> None:
    second = start()
    assert second.process.wait(30) == 1
    assert f"pair.yaml is up already: headwater stop pair or kill {up.process.pid} stops it" in second.said
    assert httpx.get(f"{up.url}/ready").json()["ready_endpoints"] == 2


def test_a_replica_that_does_not_start_ends_it_with_the_reason(start: Callable[[], Up], tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    up = start()
    assert up.process.wait(60) == 1
    assert re.search(r"pair-\d did not start. The end of .headwater/pair/pair-\d.log:\n.* not what they seem", up.said)
    assert "Traceback" not in up.said


def test_a_proxy_is_not_asked_for_what_is_here(start: Callable[[], Up], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    start().wait_until_said("ready: http://")


def test_a_changed_file_is_said_to_be_one(start: Callable[[], Up], tmp_path: Path) -> None:
    up = start()
    up.wait_until_said("ready: http://")
    assert "was changed" not in up.said
    (tmp_path / "pair.yaml").write_text(DEPLOYMENT + "# another\n")
    up.wait_until_said("pair.yaml was changed; Ctrl-C and another headwater up do what it says now")


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["mkdir", "open", "write_text"])
def test_a_state_that_cannot_be_written_is_one_sentence(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pair.yaml").write_text(DEPLOYMENT)
    given = load(tmp_path / "pair.yaml")
    monkeypatch.setattr("headwater.cli.local.plan.load", lambda _: given)
    monkeypatch.setattr(Path, call, no_room)
    assert main(["up", str(tmp_path / "pair.yaml"), "--port", "0", "--state", str(tmp_path / "state")]) == 1
    assert "cannot be written: No space left on device; choose another --state" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_one_sentence(start: Callable[[], Up], tmp_path: Path) -> None:
    (tmp_path / ".headwater" / "pair" / "pair-1.log").mkdir(parents=True)
    up = start()
    assert up.process.wait(60) == 1
    assert "pair-1 did not start. .headwater/pair/pair-1.log: Is a directory" in up.said
    assert "Traceback" not in up.said


def test_a_program_that_is_not_installed_is_named(start: Callable[[], Up], tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bin" / "transformers").unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    up = start()
    assert up.process.wait(60) == 1
    assert "transformers: No such file or directory" in up.said
    assert "Traceback" not in up.said


def test_a_taken_port_is_said_at_once(start: Callable[[], Up], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "headwater", "up", "pair.yaml", "--port", str(port)]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr == (
        f"headwater up: cannot listen on 127.0.0.1:{port}: another program listens there; "
        "choose another --port, or 0 for a free one\n"
    )
