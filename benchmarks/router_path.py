"""The token path: CPU of our router per JSON request and per streamed chunk, beside the Rust routers'.

    python benchmarks/router_path.py [--peer NAME=COMMAND ...] [--rounds 3]

All stand before the same two mock engines and get the same load (2 KB chats, 32 connections), one after the other, in
alternation. A peer's COMMAND has `{port}` and `{engines}` filled in (the engines' URLs, apart by spaces); without any,
`vllm-router` and `sglang-router` are taken from the PATH. CPU is user and system time of the router's processes: unlike
a rate it does not depend on who else uses the cores. Prints a Markdown table: medians over the rounds.
"""

import argparse
import shutil
import statistics
import sys
import urllib.request
from pathlib import Path

import http_load
import uvloop
from servers import cpu_seconds, free_port, server

CHUNKS = 64
"""In one stream."""
PEERS = {
    "vllm-router": "vllm-router --worker-urls {engines} --policy cache_aware --host 127.0.0.1 --port {port}",
    "sglang-router": "sglang-router launch --worker-urls {engines} --policy cache_aware --host 127.0.0.1 --port {port}",
}
MEASURES = ("CPU per JSON request, µs", "CPU per streamed chunk, µs", "JSON requests/s", "JSON p99, ms")
_HERE = Path(__file__).parent


def ours(engines: list[int]) -> str:
    """The command of our router; `{port}` is to be filled in."""
    flags = "".join(f" --endpoint http://127.0.0.1:{engine},backend=vllm" for engine in engines)
    return f"{sys.executable} -m headwater route --host 127.0.0.1 --port {{port}}{flags}"


def mocks(engines: list[int], chunks: int, interval_ms: float) -> str:
    """The command of mock engines on the ports `engines`."""
    command = f"{sys.executable} {_HERE / 'mock_engine.py'} --chunks {chunks} --interval-ms {interval_ms}"
    return command + "".join(f" --port {engine}" for engine in engines)


def answers(port: int, request: bytes | None = None) -> bool:
    """Whether a chat gets an answer through a port, or the list of models where no request is given."""
    path, body = (
        ("/v1/models", None) if request is None else ("/v1/chat/completions", request.partition(b"\r\n\r\n")[2])
    )
    url = f"http://127.0.0.1:{port}{path}"
    try:
        headers = {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def measure(command: str, engines: list[int], requests: int, streams: int) -> dict[str, float]:
    port = free_port()
    probe = http_load.requests(stream=False)[0]
    started = command.format(port=port, engines=" ".join(f"http://127.0.0.1:{engine}" for engine in engines))
    with server(started, lambda: answers(port, probe), timeout=90) as router:
        uvloop.run(http_load.run(port, requests // 4, 32, stream=False))
        before = cpu_seconds(router)
        whole = uvloop.run(http_load.run(port, requests, 32, stream=False))
        between = cpu_seconds(router)
        streamed = uvloop.run(http_load.run(port, streams, 32, stream=True))
        after = cpu_seconds(router)
    if whole["whole"] != requests or streamed["whole"] != streams:
        raise SystemExit(f"{command}: answers were cut: {whole}, {streamed}")
    values = (
        1e6 * (between - before) / requests,
        1e6 * (after - between) / (streams * CHUNKS),
        whole["rps"],
        whole["p99_ms"],
    )
    return dict(zip(MEASURES, values, strict=True))


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
    parser.add_argument("--requests", type=int, default=20_000, help="JSON requests a round")
    parser.add_argument("--streams", type=int, default=1_000, help=f"streams of {CHUNKS} chunks a round")
    options = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in options.peer)
    peers = peers or {name: command for name, command in PEERS.items() if shutil.which(name)}
    engines = [free_port(), free_port()]
    commands = {"headwater": ours(engines)} | peers
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    with server(mocks(engines, CHUNKS, 10), lambda: all(answers(port) for port in engines), timeout=30):
        for number in range(options.rounds):
            for name, command in commands.items():
                result = measure(command, engines, options.requests, options.streams)
                rounds[name].append(result)
                print(f"round {number + 1}, {name}: {result}", file=sys.stderr, flush=True)
    report(rounds)


if __name__ == "__main__":
    main()
