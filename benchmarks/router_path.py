"""The token path: CPU of our router per JSON request and per streamed chunk, beside the Rust routers'.

    python benchmarks/router_path.py [--engines 64] [--peer NAME=COMMAND ...] [--rounds 3]

All stand before the same mock engines and get the same load (sampled chats with a key, 32 connections), one after the
other, in alternation; ours checks the key and writes an access log. A peer's COMMAND has `{port}` and `{engines}`
filled in (the engines' URLs, apart by spaces); without any, `smg` and `vllm-router` are taken from the PATH. CPU is
user and system time of the router's processes: unlike a rate it does not depend on who else uses the cores. What a
chunk takes is what its stream takes, shared out: of few short ones a fifth is their beginning, and the probes of
engines meanwhile, so a second load has two streams an engine, as long as answers are. Prints a Markdown table: medians
over the rounds. An answer that is not whole, or not 200, ends it.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path

import http_load
import uvloop
from servers import cpu_seconds, free_port, free_ports, server

PEERS = {
    "smg": "smg launch --worker-urls {engines} --policy cache_aware --host 127.0.0.1 --port {port}",
    "vllm-router": "vllm-router --worker-urls {engines} --policy cache_aware --host 127.0.0.1 --port {port}",
}
_SIZES = {"2 KB": (2048, 20_000), "64 KB": (65_536, 3_000), "400 KB": (400_000, 600)}
"""Bytes of a prompt, and JSON requests of that size in a round."""
_JSON = "CPU per JSON request, {}, µs"
_CHUNK = "CPU per streamed chunk, {} streams of {}, µs"
_STREAMS = ((32, 64, 1000), (128, 200, 640))
"""Streams at once, chunks of each, and streams in a round."""
MEASURES = (
    *(_JSON.format(size) for size in _SIZES),
    *(_CHUNK.format(*each[:2]) for each in _STREAMS),
    "JSON requests/s",
    "JSON p99, ms",
)
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


def measure(command: str, engines: list[int], share: float) -> dict[str, float]:
    """One round. `share`: of the usual number of requests."""
    port = free_port()
    probe = http_load.requests(stream=False)[0]
    started = command.format(port=port, engines=" ".join(f"http://127.0.0.1:{engine}" for engine in engines))
    values: dict[str, float] = {}
    with server(started, lambda: answers(port, probe), timeout=90) as router:

        def cpu_per(
            count: int,
            stream: bool,
            size: int = http_load.PROMPT_BYTES,
            at_once: int = 32,
            tokens: int = http_load.TOKENS,
        ) -> tuple[float, dict[str, float]]:
            before = cpu_seconds(router)
            result = uvloop.run(http_load.run(port, count, at_once, stream, size, tokens))
            if result["whole"] != count:
                raise SystemExit(f"{command}: answers were cut: {result}")
            return 1e6 * (cpu_seconds(router) - before) / count, result

        cpu_per(max(1, int(5_000 * share)), False)  # to get warm
        for name, (size, count) in _SIZES.items():
            values[_JSON.format(name)], result = cpu_per(max(1, int(count * share)), False, size)
            if size == http_load.PROMPT_BYTES:
                values["JSON requests/s"], values["JSON p99, ms"] = result["rps"], result["p99_ms"]
        for at_once, chunks, count in _STREAMS:
            of_stream = cpu_per(max(at_once, int(count * share)), True, at_once=at_once, tokens=chunks)[0]
            values[_CHUNK.format(at_once, chunks)] = of_stream / chunks
    return values


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
    peers = dict(peer.split("=", 1) for peer in options.peer)
    peers = peers or {name: command for name, command in PEERS.items() if shutil.which(name)}
    engines = free_ports(options.engines)
    rounds: dict[str, list[dict[str, float]]] = {}
    ready = lambda: all(answers(port) for port in engines)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder, server(mocks(engines, 10), ready, timeout=30):
        commands = {"headwater": ours(engines, *with_keys(Path(folder)), python=options.python)} | peers
        for number in range(options.rounds):
            for name, command in commands.items():
                result = measure(command, engines, options.share)
                rounds.setdefault(name, []).append(result)
                print(f"round {number + 1}, {name}: {result}", file=sys.stderr, flush=True)
    report(rounds)


if __name__ == "__main__":
    main()
