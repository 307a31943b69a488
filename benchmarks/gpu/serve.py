"""End to end: `headwater serve` on a GPU under load, tokens a second and times as a client sees them.

    PYTHONPATH=engine python benchmarks/gpu/serve.py [--model random:llama-3.1-8b] [--concurrency 32]

512 random prompt tokens and 256 output tokens each. Runs twice, and reports the second: the first compiles.
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

INPUT, OUTPUT = 512, 256


def prompts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(100, 100_000) for _ in range(INPUT)] for _ in range(count)]


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:llama-3.1-8b", help="as `headwater serve` takes it")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once")
    options = parser.parse_args()
    port, count = free_port(), 2 * options.concurrency
    command = (
        f"{sys.executable} -m headwater serve {options.model} --served-model-name bench --device cuda --port {port} "
        f"--max-model-len 2048 --max-num-seqs {options.concurrency} --max-batched-tokens 4096"
    )
    report = Report("serve", ("model", "concurrent", "output tok/s", "TTFT ms", "inter-token ms"))
    with server(command, lambda: ready(port), timeout=240):
        for seed in range(2):
            run = load.run(port, "bench", prompts(count, seed), max_tokens=OUTPUT, concurrency=options.concurrency)
            found = asyncio.run(run)
        report.row(options.model, options.concurrency, found.tokens_per_s, found.ttft * 1e3, found.inter_token * 1e3)


if __name__ == "__main__":
    main()
