"""The token path: CPU of our router per JSON request and per streamed chunk, beside the Rust routers'.

    python benchmarks/router_path.py [--engines 64] [--peer NAME=COMMAND ...] [--rounds 3]

All stand before the same mock engines and get the same loads (sampled chats with a key, 32 connections) in turns, each
load one router right after the other, in the other order each second round: what else the machine does changes from
minute to minute, and who comes first pays for what the others find warm. Ours checks the key and writes an access log.
A peer's COMMAND has `{port}`, `{metrics}` (another port) and `{engines}` filled in (the engines' URLs, apart by
spaces); without any, `smg` and `vllm-router` are taken from the PATH. CPU is user and system time of the router's
processes: unlike a rate it does not depend on who else uses the cores. What a chunk takes is what its stream takes,
shared out: of few short ones a fifth is their beginning, and the probes of engines meanwhile, so a second load has two
streams an engine, as long as answers are. Prints a Markdown table: medians over the rounds. An
answer that is not whole, or not 200, ends it.
"""

import argparse
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import http_load
import psutil
import uvloop
from servers import cpu_seconds, free_port, free_ports, peer_routers, server


class Load(NamedTuple):
    """What is sent in a turn."""

    measure: str
    count: int
    """Requests of a whole turn."""
    prompt_bytes: int = http_load.PROMPT_BYTES
    at_once: int = 32
    chunks: int = 0
    """Of a stream; 0: the answers are JSON."""


LOADS = (
    Load("CPU per JSON request, 2 KB, µs", 20_000),
    Load("CPU per JSON request, 64 KB, µs", 3_000, 65_536),
    Load("CPU per JSON request, 400 KB, µs", 600, 400_000),
    Load("CPU per streamed chunk, 32 streams of 64, µs", 960, chunks=64),
    Load("CPU per streamed chunk, 128 streams of 200, µs", 640, at_once=128, chunks=200),
)
_AT_REST: Final = "CPU a second at rest, ms"
MEASURES = (*(load.measure for load in LOADS), "JSON requests/s", "JSON p99, ms", _AT_REST)
_REST: Final = 5.0
"""Seconds without a request, in which a router asks engines how they are."""
_HERE = Path(__file__).parent


def ours(engines: list[int], *flags: str, python: str = sys.executable) -> str:
    """The command of our router; `{port}` is to be filled in."""
    endpoints = "".join(f" --endpoint http://127.0.0.1:{engine},backend=vllm" for engine in engines)
    return f"{python} -m headwater route --host 127.0.0.1 --port {{port}}{endpoints} {' '.join(flags)}"


def with_keys(folder: Path) -> list[str]:
    """Flags as in production: keys, and an access log."""
    keys = folder / "keys.yaml"
    keys.write_text(f"keys:\n  - name: load\n    key: {http_load.KEY}\n")
    return ["--api-keys", str(keys), "--access-log", str(folder / "access.log")]


def mocks(engines: list[int], interval_ms: float) -> str:
    """The command of mock engines on the ports `engines`."""
    command = f"{sys.executable} {_HERE / 'mock_engine.py'} --interval-ms {interval_ms}"
    return command + "".join(f" --port {engine}" for engine in engines)


def answers(port: int, request: bytes | None = None) -> bool:
    """Whether a chat gets an answer through a port, or the list of models where no request is given."""
    path, body = (
        ("/v1/models", None) if request is None else ("/v1/chat/completions", request.partition(b"\r\n\r\n")[2])
    )
    url = f"http://127.0.0.1:{port}{path}"
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {http_load.KEY}"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def take_turn(router: psutil.Process, port: int, load: Load, share: float) -> dict[str, float]:
    """One router under one load. `share`: of the usual number of requests, of streams in whole sets."""
    count = max(1, int(load.count * share))
    if load.chunks:
        count = load.at_once * max(1, count // load.at_once)
    run = http_load.run(port, count, load.at_once, load.chunks > 0, load.prompt_bytes, load.chunks or http_load.TOKENS)
    before = cpu_seconds(router)
    result = uvloop.run(run)
    if result["whole"] != count:
        raise SystemExit(f"{router.cmdline()}: answers were cut: {result}")
    values = {load.measure: 1e6 * (cpu_seconds(router) - before) / count / max(1, load.chunks)}
    if load is LOADS[0]:
        values |= {"JSON requests/s": result["rps"], "JSON p99, ms": result["p99_ms"]}
    return values


def rest(routers: Iterable[tuple[psutil.Process, int]]) -> list[float]:
    """CPU that each takes where nobody asks it for anything, ms a second."""
    processes = [router for router, _ in routers]
    before = [cpu_seconds(each) for each in processes]
    time.sleep(_REST)
    return [1000 * (cpu_seconds(each) - spent) / _REST for each, spent in zip(processes, before, strict=True)]


def report(rounds: dict[str, list[dict[str, float]]]) -> None:
    medians = {
        name: {measure: statistics.median(each[measure] for each in results) for measure in MEASURES}
        for name, results in rounds.items()
    }
    ours = medians["headwater"]
    print(f"| measure | headwater | {' | '.join(f'{name} | ratio' for name in list(medians)[1:])} |")
    print("|---" * (2 * len(medians)) + "|")
    for measure in MEASURES:
        cells = [f"{ours[measure]:.1f}"]
        for name in list(medians)[1:]:
            peer = medians[name][measure]
            better = ours[measure] / peer if measure.endswith("/s") else peer / ours[measure]
            cells += [f"{peer:.1f}", f"{better:.2f}"]
        print(f"| {measure} | {' | '.join(cells)} |")
    print("\nRatios above 1 are better for us.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="repeat it for several")
    parser.add_argument("--rounds", type=int, default=3, help="alternations")
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of requests a round")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="that runs our router: a distribution's own is built with profile-guided optimization, as our image's is",
    )
    options = parser.parse_args()
    peers = peer_routers(options.peer)
    engines = free_ports(options.engines)
    urls = " ".join(f"http://127.0.0.1:{engine}" for engine in engines)
    ready = lambda: all(answers(port) for port in engines)  # noqa: E731
    probe = http_load.requests(stream=False)[0]
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        running.enter_context(server(mocks(engines, 10), ready, timeout=30))
        commands = {"headwater": ours(engines, *with_keys(folder), python=options.python)} | peers
        routers = {}
        for name, command in commands.items():
            port = free_port()
            up = partial(answers, port, probe)
            routers[name] = (
                running.enter_context(server(command.format(port=port, engines=urls, metrics=free_port()), up, 90)),
                port,
            )
        for router, port in routers.values():
            take_turn(router, port, LOADS[0], options.share / 4)  # to get warm
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in routers}
        for number in range(options.rounds):
            for results in rounds.values():
                results.append({})
            turn = list(routers.items())[:: -1 if number % 2 else 1]
            for load in LOADS:
                for name, (router, port) in turn:
                    rounds[name][-1] |= take_turn(router, port, load, options.share)
            for name, spent in zip(routers, rest(routers.values()), strict=True):
                rounds[name][-1][_AT_REST] = spent
            for name, results in rounds.items():
                print(f"round {number + 1}, {name}: {results[-1]}", file=sys.stderr, flush=True)
    report(rounds)


if __name__ == "__main__":
    main()
