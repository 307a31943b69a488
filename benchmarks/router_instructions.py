"""The token path in instructions, counted by valgrind: what is the same on every machine, busy or not.

    python benchmarks/router_instructions.py [--tree before=../before ...]

On a machine that others share, CPU time of the same code differs by a tenth from minute to minute, and by half from
hour to hour (`router_path.py`). Instructions differ by a hundredth; but they know nothing of caches, and of the kernel.
`--tree`: our router as it is in another working tree. Engines are asked every half minute only, for what asking them
costs depends on how long all this takes. A chunk is what its stream takes, shared out: its beginning and end, too.
Prints a Markdown table. Needs valgrind. Takes two minutes for each.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import http_load
import psutil
import uvloop
from router_path import Load, answers, mocks, ours, with_keys
from servers import free_port, free_ports, server

LOADS = (
    Load("per JSON request, 2 KB", 400),
    Load("per JSON request, 64 KB", 150, 65_536),
    Load("per streamed chunk, 32 streams of 64", 64, chunks=64),
)
_ENGINES = 64
_WARM = 1_000
"""Requests, until costs are learned and the interpreter has specialized what it runs."""
_INTERVAL_MS = 200
"""Between two chunks: under valgrind all takes some fifty times as long, and those that come together count once."""
_HERE = Path(__file__).parent


@contextmanager
def counted(router: psutil.Process) -> Iterator[None]:
    """What it does meanwhile."""
    control = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    control(["callgrind_control", "-i", "on", str(router.pid)])
    yield
    control(["callgrind_control", "-i", "off", str(router.pid)])


def count(tree: Path, engines: list[int], load: Load, folder: Path) -> float:
    """Instructions for a request, or a chunk."""
    port, out = free_port(), folder / "callgrind.out"
    paths = ":".join(str(tree / each) for each in (".", "engine", "router", "operator"))
    python = f"valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file={out} {sys.executable}"
    command = ours(engines, "--probe-interval", "30", *with_keys(folder), python=python).format(port=port)
    probe = http_load.requests(stream=False)[0]
    with server(f"env -C {tree} PYTHONPATH={paths} {command}", partial(answers, port, probe), 300) as router:
        uvloop.run(http_load.run(port, _WARM, 32, stream=False))
        run = partial(http_load.run, port, load.count, load.at_once, load.chunks > 0, load.prompt_bytes)
        with counted(router):
            result = uvloop.run(run(load.chunks or http_load.TOKENS))
        if result["whole"] != load.count:
            raise SystemExit(f"answers were cut: {result}")
    found = re.search(r"^totals: (\d+)", out.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"valgrind told nothing in {out}")
    return int(found[1]) / load.count / max(1, load.chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=PATH", help="repeat it for several")
    options = parser.parse_args()
    trees = {"now": _HERE.parent} | {
        name: Path(path).resolve() for name, path in (t.split("=", 1) for t in options.tree)
    }
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        engines = free_ports(_ENGINES)
        ready = lambda: all(answers(port) for port in engines)  # noqa: E731
        running.enter_context(server(mocks(engines, _INTERVAL_MS), ready, timeout=30))
        print(f"| instructions | {' | '.join(trees)} | now / others |")
        print("|---" * (len(trees) + 2) + "|")
        for load in LOADS:
            found = [count(tree, engines, load, folder) for tree in trees.values()]
            ratios = ", ".join(f"{found[0] / each:.3f}" for each in found[1:])
            print(f"| {load.measure} | {' | '.join(f'{each:,.0f}' for each in found)} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
