"""What a streamed token costs the router, beside what it costs whoever only moves its bytes.

    python benchmarks/stream_cost.py [--rounds 3] [--base FOLDER]

Both stand before the same mock engines and get the same streams in turns: 200 at once, of 1,000 chunks that are 20 ms
apart, which is a tenth of what 100 requests a second with 1,000 tokens each would be. What each takes where nothing
is asked of it, of which probes of engines are most, is counted once, and not with each chunk. The floor is a relay on
the same event loop that reads nothing of what it moves: one connection to an engine for each of a client's, and what
comes from one side is written to the other. `--base`: another checkout of Headwater, which takes turns, too. CPU is
user and system time of the process. Ours checks keys and writes an access log.
"""

import argparse
import asyncio
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import cast

import http_load
import psutil
import router_path
import uvloop
from router_path import Load
from servers import cpu_seconds, free_port, free_ports, server

CHUNKS_A_SECOND = 100_000
"""That cores are told for: 100 requests a second with 1,000 tokens each."""
LOAD = Load("µs a chunk", 200, at_once=200, chunks=1000)
_INTERVAL_MS = 20
_IDLE_SECONDS = 10


class _Side(asyncio.Protocol):
    """One of the two connections of a client; what comes here is written to the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self.waiting: list[bytes] = []
        """What came before the other one was there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        other = self.other
        if other is None:
            self.waiting.append(data)
        elif other.transport is not None:
            other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Client(_Side):
    def __init__(self, engine: int) -> None:
        super().__init__()
        self._engine = engine
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        _, engine = await asyncio.get_running_loop().create_connection(_Side, "127.0.0.1", self._engine)
        engine.other, self.other = self, engine
        assert engine.transport is not None
        engine.transport.write(b"".join(self.waiting))


async def relay(port: int, engines: list[int]) -> None:
    following = cycle(engines)
    await asyncio.get_running_loop().create_server(lambda: _Client(next(following)), "127.0.0.1", port, backlog=8192)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", type=Path, help="another checkout, to compare with")
    parser.add_argument("--relay", type=int, nargs="+", metavar="PORT", help="be the floor: own port, and engines'")
    options = parser.parse_args()
    if options.relay:
        uvloop.run(relay(options.relay[0], options.relay[1:]))
        return
    engines = free_ports(64)
    probe = http_load.requests(stream=False)[0]
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        ready = lambda: all(router_path.answers(port) for port in engines)  # noqa: E731
        running.enter_context(server(router_path.mocks(engines, _INTERVAL_MS), ready, timeout=60))
        ours = router_path.ours(engines, *router_path.with_keys(folder))
        floor = f"{sys.executable} {__file__} --relay {{port}} " + " ".join(map(str, engines))
        commands = {"a relay that reads nothing": floor, "headwater": ours}
        if options.base is not None:
            commands["headwater before"] = f"{_env(options.base)} {ours}"
        routers = {}
        for name, command in commands.items():
            port = free_port()
            up = partial(router_path.answers, port, probe)
            routers[name] = running.enter_context(server(command.format(port=port), up, 90)), port
        for router, port in routers.values():
            router_path.take_turn(router, port, LOAD, 1.0)  # to get warm
        idle = {name: idle_cores(router) for name, (router, _) in routers.items()}
        rounds: dict[str, list[float]] = {name: [] for name in routers}
        for _ in range(options.rounds):
            for name, (router, port) in routers.items():
                began = time.monotonic()
                taken = router_path.take_turn(router, port, LOAD, 1.0)[LOAD.measure]
                seconds = time.monotonic() - began
                rounds[name].append(taken - 1e6 * idle[name] * seconds / (LOAD.count * LOAD.chunks))
    print("| | µs a chunk | rounds | cores, idle | cores at 100,000 chunks/s |\n|---|---|---|---|---|")
    for name, values in rounds.items():
        median = statistics.median(values)
        told = f"{min(values):.1f} to {max(values):.1f} | {idle[name]:.3f}"
        print(f"| {name} | {median:.1f} | {told} | {idle[name] + CHUNKS_A_SECOND * median / 1e6:.2f} |")


def idle_cores(router: psutil.Process) -> float:
    """What it takes while nothing is asked of it."""
    before = cpu_seconds(router)
    time.sleep(_IDLE_SECONDS)
    return (cpu_seconds(router) - before) / _IDLE_SECONDS


def _env(base: Path) -> str:
    path = ":".join(str(base / part) for part in (".", "engine", "router", "operator"))
    return f"env PYTHONPATH={shlex.quote(path)}"


if __name__ == "__main__":
    main()
