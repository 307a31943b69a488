"""How long a group of ranks takes to end once one of it is lost, and to answer again under `headwater up`.

    python benchmarks/group_end.py [--scenes one two up] [--runs 3]

Real processes with a tiny model of random weights and a stream that is open, on CPUs. *one*: two ranks on one machine.
*two*: one on each of two, which are networks of their own here with a cable between them (takes root and `ip`). Printed
are seconds from the fault, the least and the most of all runs: until the stream has its error, until all ranks are
gone, and until each `headwater serve` has ended. *up*: until a prompt is answered again, with the whole start in it.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.servers import free_port

PATIENCE = 120  # seconds: a guard
ASKED = {"prompt": "abc", "max_tokens": 4, "ignore_eos": True}
LONG = {**ASKED, "max_tokens": 1900, "stream": True}
SERVE = ["serve", "random:tiny", "--device", "cpu", "--num-blocks", "300", "--log-level", "error"]
NETWORK = f"hw{os.getpid()}"


@dataclass(slots=True)
class Served:
    """A `headwater serve`, or one of its machines."""

    process: asyncio.subprocess.Process
    http: httpx.AsyncClient

    def ranks(self) -> list[psutil.Process]:
        below = [(child, " ".join(child.cmdline())) for child in psutil.Process(self.process.pid).children(True)]
        first = [child for child, command in below if "headwater_engine.core" in command]
        return first + [child for child, command in below if "headwater_engine.worker" in command]

    async def until(self, answered: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):
                    if await answered():
                        return
                assert self.process.returncode is None
                await asyncio.sleep(0.05)

    async def ready(self) -> bool:
        return (await self.http.get("/ready")).status_code == 200


@asynccontextmanager
async def served(*arguments: str, inside: str = "", interface: str = "lo") -> AsyncIterator[Served]:
    port = free_port()
    prefix = ["ip", "netns", "exec", inside] if inside else []
    command = [*prefix, sys.executable, "-m", "headwater", *arguments, "--port", str(port)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": interface}
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL, env=environment)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
            yield Served(process, http)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@contextmanager
def cable() -> Iterator[None]:
    """From NETWORKa here to NETWORKb there."""
    with ExitStack() as made:
        made.callback(subprocess.run, ["ip", "netns", "del", NETWORK], check=False)
        made.callback(subprocess.run, ["ip", "link", "del", f"{NETWORK}a"], check=False)  # which else ends later
        for command in (
            f"ip netns add {NETWORK}",
            f"ip link add {NETWORK}a type veth peer name {NETWORK}b netns {NETWORK}",
            f"ip addr add 198.18.78.1/30 dev {NETWORK}a",
            f"ip link set {NETWORK}a up",
            f"ip -n {NETWORK} addr add 198.18.78.2/30 dev {NETWORK}b",
            f"ip -n {NETWORK} link set {NETWORK}b up",
            f"ip -n {NETWORK} link set lo up",
        ):
            subprocess.run(command.split(), check=True)
        yield


Fault = Callable[[list[Served]], object]


def send(number: signal.Signals, machine: int, rank: int) -> Fault:
    return lambda machines: machines[machine].ranks()[rank].send_signal(number)


ONE: dict[str, Fault] = {
    "rank 0 killed": send(signal.SIGKILL, 0, 0),
    "rank 0 stopped": send(signal.SIGSTOP, 0, 0),
    "rank 1 killed": send(signal.SIGKILL, 0, 1),
    "rank 1 stopped": send(signal.SIGSTOP, 0, 1),
}
TWO: dict[str, Fault] = {
    "rank 1 of node 1 killed": send(signal.SIGKILL, 1, 0),
    "rank 1 of node 1 stopped": send(signal.SIGSTOP, 1, 0),
    "the network cut off": lambda machines: subprocess.run(["ip", "link", "set", f"{NETWORK}a", "down"], check=True),
    "all of node 1 killed": lambda machines: machines[1].process.kill(),
}


async def time_end(machines: list[Served], fault: Fault) -> list[float]:
    """Seconds until the error of a stream, the end of all ranks, and that of all processes."""
    begun, ended = asyncio.Event(), [0.0]

    async def read() -> None:
        with suppress(httpx.TransportError):
            async with machines[0].http.stream("POST", "/v1/completions", json=LONG) as answer:
                async for line in answer.aiter_lines():
                    begun.set()
                    if '"error"' in line:
                        ended[0] = time.monotonic()

    reading = asyncio.create_task(read())
    await begun.wait()
    ranks = [rank for machine in machines for rank in machine.ranks()]
    at = time.monotonic()
    fault(machines)
    while any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks):
        assert time.monotonic() - at < PATIENCE
        await asyncio.sleep(0.01)
    gone = time.monotonic()
    await asyncio.gather(reading, *(machine.process.wait() for machine in machines))
    assert ended[0], "the stream had no error"
    return [ended[0] - at, gone - at, time.monotonic() - at]


async def on_one(fault: Fault) -> list[float]:
    async with served(*SERVE, "--tensor-parallel-size", "2") as server:
        await server.until(server.ready)
        return await time_end([server], fault)


async def on_two(fault: Fault) -> list[float]:
    group = [*SERVE, "--tensor-parallel-size", "2", "--nodes", "2", "--leader", f"198.18.78.1:{free_port()}"]
    with cable():
        async with (
            served(*group, "--node-rank", "0", interface=f"{NETWORK}a") as first,
            served(*group, "--node-rank", "1", inside=NETWORK, interface=f"{NETWORK}b") as other,
        ):
            await first.until(first.ready)
            return await time_end([first, other], fault)


def deployment(folder: str) -> str:
    """A file in there that says what to run."""
    spec = {
        "model": {"source": "random:tiny"},
        "parallelism": {"tensor": 2},
        "backend": {"type": "headwater", "args": ["--device", "cpu", "--num-blocks", "300"]},
    }
    resource = {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "shared"}}
    file = Path(folder, "shared.yaml")
    file.write_text(json.dumps(resource | {"spec": spec}))
    return str(file)


async def under_up(fault: Fault) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        async with served("up", deployment(folder), "--state", folder) as server:

            async def answers() -> bool:
                asked = {**ASKED, "model": "shared"}
                return (await server.http.post("/v1/completions", json=asked)).status_code == 200

            await server.until(answers)
            ranks = server.ranks()
            at = time.monotonic()
            fault([server])
            while any(rank.is_running() for rank in ranks):
                assert time.monotonic() - at < PATIENCE
                await asyncio.sleep(0.01)
            gone = time.monotonic()
            await server.until(answers)
            return [gone - at, time.monotonic() - at]


SCENES: dict[str, tuple[Callable[[Fault], Awaitable[list[float]]], dict[str, Fault], str]] = {
    "one": (on_one, ONE, "error, ranks gone, all ended"),
    "two": (on_two, TWO, "error, ranks gone, all ended"),
    "up": (under_up, {name: ONE[name] for name in ("rank 1 killed", "rank 1 stopped")}, "ranks gone, answers again"),
}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    for scene in asked.scenes:
        run, faults, columns = SCENES[scene]
        print(f"{scene}: seconds until {columns}; {asked.runs} runs", flush=True)
        for name, fault in faults.items():
            runs = [await run(fault) for _ in range(asked.runs)]
            spans = (f"{min(each):.2f}-{max(each):.2f}" for each in zip(*runs, strict=True))
            print(f"  {name:26}{'  '.join(spans)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
