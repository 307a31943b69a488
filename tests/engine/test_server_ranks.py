"""`headwater serve` with ranks: how a group begins, answers and ends, as processes with a model."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.engine.front import TEXT, free_port
from tests.engine.test_engine_process import ends, opened_by_others

PATIENCE = 180  # seconds: a guard
ASKED = {**TEXT, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
LONG = {**ASKED, "max_tokens": 1900}


@dataclass(slots=True)
class Server:
    process: asyncio.subprocess.Process
    http: httpx.AsyncClient

    def ranks(self) -> list[psutil.Process]:
        return ranks_below(self.process.pid)

    async def until_ready(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    answer = await self.http.get("/ready")
                    if answer.status_code == 200:
                        return answer.json()
                except httpx.TransportError:
                    assert self.process.returncode is None
                await asyncio.sleep(0.1)

    async def end(self) -> tuple[int | None, str]:
        """Exit status and stderr, once it is gone by itself."""
        _, errors = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def serving(
    *flags: str, environment: dict[str, str] | None = None, inside: tuple[str, ...] = ()
) -> AsyncIterator[Server]:
    """`inside`: the command that runs it in another place."""
    port = free_port()
    command = [
        *inside,
        sys.executable,
        "-m",
        "headwater",
        "serve",
        "random:tiny",
        "--port",
        str(port),
        "--num-blocks",
        "300",
    ]
    command += ["--log-level", "error", "--device", "cpu", "--tensor-parallel-size", "2", *flags]
    process = await asyncio.create_subprocess_exec(
        *command,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"HEADWATER_KERNELS": "torch", "GLOO_SOCKET_IFNAME": "lo"} | (environment or {}),
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        try:
            yield Server(process, http)
        finally:
            if process.returncode is None:
                with contextlib.suppress(psutil.NoSuchProcess):  # asyncio has not heard of its end yet
                    for child in psutil.Process(process.pid).children():
                        child.kill()
                    process.kill()
            _, errors = await process.communicate()
            print(errors.decode(errors="replace"), file=sys.stderr)  # for whoever looks why a test failed


async def begun_stream(server: Server) -> tuple[asyncio.Task[list[str]], asyncio.Event]:
    """A stream's events, all of them once it is over; and whether there is one already."""
    begun = asyncio.Event()

    async def read() -> list[str]:
        events = []
        async with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                events += [line] if line else []
                begun.set()
        return events

    task = asyncio.create_task(read())
    async with asyncio.timeout(PATIENCE):
        await begun.wait()
    return task, begun


async def test_a_killed_rank_ends_the_group_and_every_open_request() -> None:
    async with serving() as server:
        ready = await server.until_ready()
        assert ready["ranks"] == 2
        assert "headwater_engine_ranks 2.0" in (await server.http.get("/metrics")).text
        assert (await server.http.post("/v1/completions", json=ASKED)).json()["usage"]["completion_tokens"] == 4
        stream, _ = await begun_stream(server)
        whole = asyncio.create_task(server.http.post("/v1/completions", json=LONG))
        ranks = server.ranks()
        ranks[1].kill()
        reason = "Rank 1 died with exit status -9."
        assert json.loads((await stream)[-1].removeprefix("data: "))["error"]["message"] == reason
        answer = await whole
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, reason)
        status, errors = await server.end()
        assert status == 1
        assert f"headwater serve: {reason}" in errors
        assert f"rank 0 ends: {reason}" in errors
        for rank in ranks:
            assert await ends(rank)


STUCK = """
import os, sys, threading
if "headwater_engine.worker" in sys.orig_argv:
    from headwater_engine.distributed.counted import CountedRanks
    add_up = CountedRanks.sum
    def sum_or_never(self, x):
        while os.path.exists({path!r}):
            threading.Event().wait()
        return add_up(self, x)
    CountedRanks.sum = sum_or_never
"""
"""What Python runs first in each process: the model of rank 1 stands still once there is a file."""


async def test_a_rank_whose_model_stands_still_while_it_beats_ends_the_group(tmp_path: Path) -> None:
    still = tmp_path / "still"
    (tmp_path / "sitecustomize.py").write_text(STUCK.format(path=str(still)))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    async with serving(environment={"PYTHONPATH": path}) as server:
        await server.until_ready()
        assert (await server.http.post("/v1/completions", json=ASKED)).status_code == 200
        ranks = server.ranks()
        still.touch()
        reason = "Rank 1 stands still while others wait for it."
        answer = await server.http.post("/v1/completions", json=LONG)
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, reason)
        status, errors = await server.end()
        assert status == 1
        assert f"headwater serve: {reason}" in errors
        for rank in ranks:
            assert await ends(rank)


async def test_two_nodes_serve_as_one_and_end_as_one() -> None:
    """The second one comes first, and one of its ranks is stopped later."""
    leader = f"127.0.0.1:{free_port()}"
    group = ["--nodes", "2", "--leader", leader]
    async with serving(*group, "--node-rank", "1") as other:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    answer = await other.http.get("/ready")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        assert answer.status_code == 503
        assert f"waiting for node 0 at {leader}" in answer.json()["phase"]
        assert (await other.http.get("/health")).status_code == 200
        async with serving(*group, "--node-rank", "0") as first:
            assert (await first.until_ready())["ranks"] == 2
            assert (await other.until_ready())["ranks"] == 1
            assert (await other.http.get("/v1/models")).status_code == 404
            assert (await first.http.post("/v1/completions", json=ASKED)).status_code == 200
            await assert_strangers_do_no_harm(first, leader)
            other.ranks()[0].send_signal(signal.SIGSTOP)
            reason = "Rank 1 gives no sign of life."
            for server in (first, other):
                status, errors = await server.end()
                assert status == 1
                assert f"headwater serve: {reason}" in errors


async def assert_strangers_do_no_harm(server: Server, leader: str) -> None:
    """At the port of steps; nobody listens at the leader's own, and at that of the store, any more."""
    host, port = leader.split(":")
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000):
        _, writer = await asyncio.open_connection(host, int(port) + 2)
        writer.write(sent)
        writer.close()
    _, writer = await asyncio.open_connection(host, int(port) + 2)
    with pytest.raises(ConnectionError):  # cut off, and nothing is kept
        for _ in range(100):
            writer.write(b"A" * 1_000_000)
            await writer.drain()
    for number in (int(port), int(port) + 1):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, number)
    assert (await server.http.post("/v1/completions", json=ASKED)).status_code == 200


@pytest.fixture
def cable() -> Iterator[str]:
    """The name of a network, which takes root and `ip` to make. A cable leads there, from NAMEa here to NAMEb there."""
    name = f"hw{os.getpid()}"
    try:
        for command in (
            f"ip netns add {name}",
            f"ip link add {name}a type veth peer name {name}b netns {name}",
            f"ip addr add 198.18.77.1/30 dev {name}a",
            f"ip link set {name}a up",
            f"ip -n {name} addr add 198.18.77.2/30 dev {name}b",
            f"ip -n {name} link set {name}b up",
            f"ip -n {name} link set lo up",
        ):
            subprocess.run(command.split(), check=True, capture_output=True)
        yield name
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("networks can not be made here")
    finally:
        with suppress(OSError):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


async def test_nodes_that_are_cut_off_from_one_another_end_and_say_so(cable: str) -> None:
    """Nothing says goodbye: packets are lost from one moment to the next."""
    group = ["--nodes", "2", "--leader", f"198.18.77.1:{free_port()}"]
    inside = ("ip", "netns", "exec", cable)
    environment = {"GLOO_SOCKET_IFNAME": f"{cable}b"}
    async with serving(*group, "--node-rank", "1", environment=environment, inside=inside) as other:
        environment = {"GLOO_SOCKET_IFNAME": f"{cable}a"}
        async with serving(*group, "--node-rank", "0", environment=environment) as first:
            assert (await first.until_ready())["ranks"] == 2
            stream, _ = await begun_stream(first)
            cut = await asyncio.create_subprocess_exec("ip", "link", "set", f"{cable}a", "down")
            assert await cut.wait() == 0
            reason = "Node 1, with rank 1, gives no sign of life."
            assert json.loads((await stream)[-1].removeprefix("data: "))["error"]["message"] == reason
            for server, words in ((first, reason), (other, "Node 0 gives no sign of life.")):
                status, errors = await server.end()
                assert status == 1
                assert f"headwater serve: {words}" in errors


async def test_ranks_end_with_the_process_that_started_them_while_they_load(tmp_path: Path) -> None:
    """While one compiles the kernels, by a compiler that never comes to an end, and the other waits for it."""
    pipe, compiler = tmp_path / "pipe", tmp_path / "compiler"
    os.mkfifo(pipe)
    compiler.write_text(f"#!/bin/sh\nread line < {pipe}\nexit 1\n")
    compiler.chmod(0o755)
    environment = {
        "CXX": str(compiler),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "built"),
        "HEADWATER_KERNELS": "auto",
    }
    async with serving(environment=environment) as server:
        async with asyncio.timeout(PATIENCE):
            while len(ranks := server.ranks()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        writer = await opened_by_others(pipe, ranks[0])
        try:
            server.process.kill()
            for rank in ranks:
                assert await ends(rank)
        finally:
            os.close(writer)


async def test_up_has_a_group_back_of_which_a_rank_is_killed_and_then_one_stopped(tmp_path: Path) -> None:
    spec = {
        "model": {"source": "random:tiny"},
        "parallelism": {"tensor": 2},
        "backend": {"type": "headwater", "args": ["--device", "cpu", "--num-blocks", "300"]},
        "routing": {"policy": "round_robin"},
    }
    resource = {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "shared"}}
    (tmp_path / "shared.yaml").write_text(json.dumps(resource | {"spec": spec}))
    port = free_port()
    command = ["-m", "headwater", "up", str(tmp_path / "shared.yaml"), "--port", str(port), "--state", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.DEVNULL, env=os.environ | {"HEADWATER_KERNELS": "torch"}
    )
    asked = {**ASKED, "model": "shared"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        try:
            await until_answered(http, asked)
            for number, rank in ((signal.SIGKILL, 1), (signal.SIGSTOP, 0)):
                those = ranks_below(process.pid)
                assert len(those) == 2
                those[rank].send_signal(number)
                for each in those:
                    assert await ends(each)
                await until_answered(http, asked)
                again = ranks_below(process.pid)
                assert len(again) == 2
                assert not {each.pid for each in again} & {each.pid for each in those}
        finally:
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), PATIENCE)


async def until_answered(http: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    """Errors until then are of a router or an engine that is not there yet, or about to end."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(httpx.TransportError):
                if (answer := await http.post("/v1/completions", json=asked)).status_code == 200:
                    return
                assert answer.status_code >= 500, answer.text
            await asyncio.sleep(0.2)


def ranks_below(pid: int) -> list[psutil.Process]:
    """The first one first."""
    below = [(child, " ".join(child.cmdline())) for child in psutil.Process(pid).children(recursive=True)]
    first = [child for child, command in below if "headwater_engine.core" in command]
    return first + [child for child, command in below if "headwater_engine.worker" in command]
