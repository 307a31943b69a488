"""What ranks on one machine cost: their sums, over gloo and by shared memory, and a model alone and shared by two.

    python benchmarks/rank_sums.py [--parts sums model] [--calls 300] [--model random:smollm2-135m]

*sums*: of two processes with a thread each. Printed are microseconds of a call on the first rank, of bfloat16
[tokens, features]: the fastest tenth of all calls, since other processes share the machine, and the median. *model*:
`headwater serve` under `headwater bench`, with one rank on all cores and with two on half of them each.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median, quantiles

import httpx
import torch
import torch.distributed as dist

from benchmarks.servers import free_port, server
from headwater_engine.distributed.ranks import ProcessRanks, Ranks
from headwater_engine.distributed.shared_memory import LARGEST, share_memory

TOKENS = (1, 8, 32, 128, 512)
FEATURES = (576, 4096)
AT_ONCE = (1, 8)


def time_sums(rank: int, store: Path, calls: int) -> list[tuple[int, int, str, float, float]]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    gloo = ProcessRanks()
    ways = {"gloo": gloo, "shared memory": share_memory(gloo)}
    try:
        return [
            (features, tokens, way, *time_calls(ranks, torch.ones(tokens, features, dtype=torch.bfloat16), calls))
            for features in FEATURES
            for tokens in TOKENS
            for way, ranks in ways.items()
            if way == "gloo" or 2 * tokens * features <= LARGEST
        ]
    finally:
        dist.destroy_process_group()


def time_calls(ranks: Ranks, x: torch.Tensor, calls: int) -> tuple[float, float]:
    """Microseconds: the fastest tenth, and the median."""
    took = []
    for _ in range(calls):
        begun = time.perf_counter()
        ranks.sum(x)
        took.append((time.perf_counter() - begun) * 1e6)
        x.fill_(1)
    return quantiles(took, n=10)[0], median(took)


def sums(calls: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes,
    ):
        both = [processes.submit(time_sums, rank, Path(folder, "store"), calls) for rank in range(2)]
        for features, tokens, way, fastest, middle in both[0].result():
            print(f"{features:5} features {tokens:4} tokens  {way:14}{fastest:9.0f}{middle:9.0f}", flush=True)


def speeds(model: str) -> Iterator[str]:
    for ranks in (1, 2):
        port = free_port()
        url = f"http://127.0.0.1:{port}"

        def ready(url: str = url) -> bool:
            try:
                return httpx.get(f"{url}/ready").status_code == 200
            except httpx.TransportError:
                return False

        command = f"{sys.executable} -m headwater serve {model} --port {port} --device cpu --num-blocks 1000"
        with server(f"{command} --tensor-parallel-size {ranks}", ready):
            for at_once in AT_ONCE:
                asked = ["--concurrency", str(at_once), "--requests", str(4 * at_once), "--max-tokens", "48"]
                bench = [sys.executable, "-m", "headwater", "bench", f"{url}/v1", *asked, "--json"]
                done = subprocess.run(bench, check=True, capture_output=True, text=True)
                yield f"{ranks} ranks, {at_once} at a time: {json.dumps(json.loads(done.stdout))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("sums", "model"), default=("sums", "model"))
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--model", default="random:smollm2-135m")
    asked = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "sums" in asked.parts:
        sums(asked.calls)
    if "model" in asked.parts:
        for line in speeds(asked.model):
            print(line, flush=True)


if __name__ == "__main__":
    main()
