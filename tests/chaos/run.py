"""Random faults under load, with a real router process: what must hold whatever goes wrong.

    python -m tests.chaos.run [--faults 1000] [--seconds 120] [--seed 7]

Six engines hang, reset, answer garbage, 429, 500 and error events, die and come back; clients leave, and send and read
slowly; Redis and the API server go away. At any time at least half of the engines are well. It fails where a client got
a byte of another one's answer, where anything hangs, where a request was lost that could have been tried again, where a
count does not go back to zero, or where memory does not.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.clients import Client, Tally
from tests.chaos.engines import FAULTS, ChaosEngine
from tests.router.cluster import ApiServer, api_server, model
from tests.router.redis_server import RedisServer, redis_server

_ENGINES = 6
_MOST_ILL = 3
_CLIENTS = 48
"""At once."""
_MOST_GROWTH_MIB = 24.0
"""Of the router, after the faults and before; arenas of the allocator, not requests."""
_RETRIED = ("unreachable", "lost", "failed", "denied", "overloaded")
"""Outcomes after which another endpoint is to be tried, if nothing was said yet."""
_FLAGS = {
    "answer-timeout": 4,
    "stall-timeout": 2,
    "connect-timeout": 1,
    "probe-interval": 0.2,
    "probe-timeout": 1,
    "breaker-open": 2,
    "max-attempts": 4,
    "log-level": "error",
}


@dataclass(slots=True, eq=False)
class Chaos:
    rng: random.Random
    engines: list[ChaosEngine]
    redis: RedisServer
    cluster: ApiServer
    port: int
    admin_port: int
    tally: Tally

    # Load

    async def load(self, until: Callable[[], bool]) -> None:
        """Keep so many clients busy."""
        number = 0

        async def one_after_the_other() -> None:
            nonlocal number
            while not until():
                number += 1
                await Client(self.port, number, random.Random(self.rng.random()), self.tally).run()

        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(one_after_the_other())

    # Faults

    async def faults(self, count: int, seconds: float) -> Counter[str]:
        made: Counter[str] = Counter()
        ill: set[ChaosEngine] = set()
        for _ in range(count):
            await asyncio.sleep(seconds / count)
            if self.rng.random() < 0.01:
                made[await self._away()] += 1
                continue
            well = [engine for engine in self.engines if engine not in ill]
            if len(ill) == _MOST_ILL or (ill and self.rng.random() < 0.4):
                await self._heal(engine := self.rng.choice(sorted(ill, key=lambda each: each.name)))
                ill.discard(engine)
                well.append(engine)
            engine = self.rng.choice(well)
            ill.add(engine)
            made[self._harm(engine)] += 1
        for engine in ill:
            await self._heal(engine)
        return made

    def _harm(self, engine: ChaosEngine) -> str:
        fault = self.rng.choice(["die", *FAULTS])
        if fault == "die":
            engine.die()
        else:
            engine.fail(fault)
        return fault

    async def _heal(self, engine: ChaosEngine) -> None:
        engine.heal()
        if not engine.alive:
            await engine.start()

    async def _away(self) -> str:
        if self.rng.random() < 0.5:
            await self.redis.kill()
            await self.redis.start()
            return "Redis away"
        await self.cluster.stop()
        await self.cluster.start()
        return "API server away"

    # What is left

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        return {name: float(value) for line in lines if line[:1] != "#" for name, value in [line.rsplit(" ", 1)]}

    async def until_quiet(self) -> list[str]:
        """What does not go back to zero within a minute."""
        counts = re.compile(
            r"headwater_router_(endpoint_in_flight|endpoint_prefill_tokens|deployment_held|waiting"
            r"|body_bytes|open_requests|open_retries|clients)\b"
        )
        deadline = time.monotonic() + 60
        while True:
            metrics = await asyncio.to_thread(self.metrics)
            left = [f"{name} is {value:g}" for name, value in metrics.items() if counts.match(name) and value]
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.2)


def lost(log: Path, metrics: dict[str, float]) -> list[str]:
    """Requests of the access log that were tried once, and should have been twice."""
    without = metrics.get('headwater_router_retries_total{reason="no_budget"}', 0)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    single = [
        f"{record['id']}: {record['tries']}"
        for record in records
        if record["outcome"] in _RETRIED and len(record["tries"]) == 1 and record["first_token"] is None
    ]
    return single[: max(0, len(single) - int(without))]


async def run(count: int, seconds: float, seed: int) -> list[str]:
    """Returns what went wrong."""
    rng = random.Random(seed)
    engines = [ChaosEngine(f"e{number}") for number in range(_ENGINES)]
    async with redis_server() as redis, api_server() as cluster:
        for engine in engines:
            await engine.start()
        cluster.put(model("another"))
        with tempfile.TemporaryDirectory() as folder:
            process, ports = await _start(Path(folder), engines, redis, cluster)
            try:
                chaos = Chaos(rng, engines, redis, cluster, *ports, Tally())
                problems = await _run(chaos, count, seconds, psutil.Process(process.pid), Path(folder))
            finally:
                process.terminate()
                await process.wait()
            return problems + _tracebacks(Path(folder))


def _tracebacks(folder: Path) -> list[str]:
    """What the router did not expect."""
    log = (folder / "router.log").read_text(errors="replace")
    return [f"the router's log has {each[-1500:]}" for each in log.split("Traceback")[1:4]]


async def _start(
    folder: Path, engines: list[ChaosEngine], redis: RedisServer, cluster: ApiServer
) -> tuple[asyncio.subprocess.Process, tuple[int, int]]:
    ports = _free_port(), _free_port()
    flags = [text for name, value in _FLAGS.items() for text in (f"--{name}", str(value))]
    flags += [text for engine in engines for text in ("--endpoint", f"{engine.upstream.url},backend=vllm")]
    flags += ["--kubernetes", "--redis-url", redis.url, "--access-log", str(folder / "access.log")]
    flags += ["--port", str(ports[0]), "--admin-port", str(ports[1])]
    environment = {"KUBECONFIG": str(cluster.kubeconfig(folder)), "PYTHONPATH": ":".join(sys.path)}
    with (folder / "router.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headwater", "route", *flags, env=environment, stderr=log
        )
    return process, ports


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _run(chaos: Chaos, count: int, seconds: float, router: psutil.Process, folder: Path) -> list[str]:
    await _until_ready(chaos)
    warm_until = time.monotonic() + min(10.0, seconds / 4)
    await chaos.load(lambda: time.monotonic() > warm_until)
    before = router.memory_info().rss / 2**20
    faults = asyncio.create_task(chaos.faults(count, seconds))
    await chaos.load(faults.done)
    problems = list(chaos.tally.wrong)
    problems += await chaos.until_quiet()
    await asyncio.sleep(1.0)  # The access log gathers its lines for a moment.
    metrics = await asyncio.to_thread(chaos.metrics)
    problems += [f"could have been tried again: {each}" for each in lost(folder / "access.log", metrics)]
    after = router.memory_info().rss / 2**20
    if after - before > _MOST_GROWTH_MIB:
        problems.append(f"memory went from {before:.0f} to {after:.0f} MiB")
    tally = chaos.tally
    print(f"faults: {sum(faults.result().values())} {dict(sorted(faults.result().items()))}")
    print(f"requests: {tally.total}, answered {tally.answered}, broken off {tally.broken}, left {tally.left}")
    print(f"refused: {dict(sorted(tally.refused.items()))}")
    print(f"memory: {before:.0f} MiB before, {after:.0f} after")
    print(f"longest stretch of the last minute: {_longest(metrics):.3f} s")
    return problems


def _longest(metrics: dict[str, float]) -> float:
    return metrics.get("headwater_router_loop_lag_seconds", 0.0)


async def _until_ready(chaos: Chaos) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                metrics = await asyncio.to_thread(chaos.metrics)
            except OSError:
                metrics = {}
            ready = [value for name, value in metrics.items() if name.startswith("headwater_router_endpoint_ready")]
            if sum(ready) == _ENGINES:
                return
            await asyncio.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    problems = asyncio.run(run(options.faults, options.seconds, options.seed))
    for problem in problems[:50]:
        print(f"WRONG: {problem}", file=sys.stderr)
    print("1 failed" if problems else "1 passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
