"""End to end: `headwater serve` on a GPU under load, tokens a second and times as a client sees them.

    PYTHONPATH=engine python benchmarks/gpu/serve.py [--model random:llama-3.1-8b]

Random prompts of 512 tokens and answers of 256, 32 at once; then the same behind 4,096 tokens that all prompts begin
with, at 32, 128 and 256. Each load is two requests for each of those at once, and a smaller one before it, which
compiles and fills the cache.
"""

import argparse
import asyncio
import random
import sys
import urllib.request
from pathlib import Path

from measure import Report

sys.path.insert(0, str(Path(__file__).parents[1]))
import load
from servers import free_port, server

INPUT, OUTPUT, SHARED = 512, 256, 4096
LOADS = [("512 in, 256 out", 0, 32), *[("behind 4,096 shared", SHARED, at_once) for at_once in (32, 128, 256)]]
"""(name, tokens that all prompts begin with, requests at once)"""
COLUMNS = (
    "load",
    "concurrent",
    "output tok/s",
    "TTFT ms p50",
    "TTFT ms p99",
    "inter-token ms p50",
    "inter-token ms p99",
    "cached",
)


def prompts(count: int, shared: int, seed: int) -> list[list[int]]:
    prefix = [random.Random(shared).randrange(100, 100_000) for _ in range(shared)]
    rng = random.Random(seed)
    return [prefix + [rng.randrange(100, 100_000) for _ in range(INPUT)] for _ in range(count)]


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def measure(port: int, shared: int, at_once: int) -> load.Summary:
    for seed, count in ((0, at_once), (1, 2 * at_once)):
        run = load.run(port, "bench", prompts(count, shared, seed), max_tokens=OUTPUT, concurrency=at_once)
        found = asyncio.run(run)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:llama-3.1-8b", help="as `headwater serve` takes it")
    options = parser.parse_args()
    port = free_port()
    command = (
        f"{sys.executable} -m headwater serve {options.model} --served-model-name bench --device cuda --port {port} "
        f"--max-model-len 8192 --max-num-seqs {max(at_once for _, _, at_once in LOADS)} --max-batched-tokens 4096"
    )
    report = Report("serve", COLUMNS)
    report.note(command=command)
    with server(command, lambda: ready(port), timeout=240):
        for name, shared, at_once in LOADS:
            found = measure(port, shared, at_once)
            times = (found.ttft, found.ttft_p99, found.gap_p50, found.gap_p99)
            report.row(name, at_once, found.tokens_per_s, *(time * 1e3 for time in times), found.cached_share)


if __name__ == "__main__":
    main()
