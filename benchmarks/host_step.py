"""What the host takes of a step in which many long requests decode: planning, and laying it out for a device.

    python benchmarks/host_step.py [--requests 256] [--context 8192]

No GPU is needed: the model and the kernels compute nothing, so that what is left is the host's own time. On a GPU at
depth 1 it costs nothing as long as it is less than the step before it takes. `find_groups` is a part of `lay_out`, that
one of `launch`; `step` is all of the engine's, with what comes home. Medians, in milliseconds.
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.kernels.interface import (
    BLOCK_SIZE,
    AttentionBatch,
    FlatBatch,
    LayerCache,
    SamplingBatch,
    SeatTables,
    Told,
)
from headwater_engine.kernels.prefixes import GROUPS
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.config import ModelConfig
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker import inputs
from headwater_engine.worker.worker import ModelWorker

STEPS, WARM = 40, 5
SHARED = 4096
PARTS = ("plan", "launch", "lay_out", "find_groups", "step")


class NoKernels(TorchKernels):
    """Look for shared prefixes, and compute nothing."""

    prefix_groups = GROUPS

    def spread(self, told: Told, tables: SeatTables, batch: FlatBatch) -> None:
        batch.rows.copy_(told.rows[0])
        batch.seats.copy_(told.rows[1])

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return torch.ones(len(logits), dtype=torch.long)


class NoModel:
    config = ModelConfig(1000, (), 1 << 20)
    recordable = False

    def reach(self, positions: int) -> None:
        pass

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        return torch.empty(len(tokens) if rows is None else len(rows), 1)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def time_of(requests: int, context: int, shared: int) -> dict[str, float]:
    """Milliseconds by part, of steps of `requests` that begin with the same `shared` tokens."""
    longest, most = context + STEPS + 2, requests * context
    scheduler = Scheduler(
        PrefixCache(requests * (-(-longest // BLOCK_SIZE) + 1), BLOCK_SIZE, reuse=shared > 0),
        max_num_seqs=requests,
        max_batched_tokens=most,
    )
    worker = ModelWorker(NoModel(), [], NoKernels(), seats=requests, longest=longest, budget=most)
    engine = Engine(scheduler, worker, max_model_len=longest, vocab_size=1000)
    rng = random.Random(0)
    prefix = [rng.randrange(1000) for _ in range(shared)]
    params = SamplingParams(max_tokens=STEPS + 1, temperature=0, ignore_eos=True)
    for number in range(requests):
        prompt = prefix + [rng.randrange(1000) for _ in range(context - shared)]
        engine.add(Generate(id=str(number), prompt=prompt, params=params))
    while len(scheduler.running) < requests or any(len(each.tokens) == context for each in scheduler.running):
        engine.step()
    seconds: dict[str, list[float]] = defaultdict(list)
    for owner, name in ((scheduler, "plan"), (worker, "launch"), (worker._inputs, "lay_out"), (engine, "step")):
        setattr(owner, name, timed(getattr(owner, name), seconds[name]))
    before = inputs.find_groups
    inputs.find_groups = timed(before, seconds["find_groups"])
    for _ in range(STEPS - WARM):
        engine.step()
    inputs.find_groups = before
    return {name: statistics.median(times[WARM:]) * 1e3 for name, times in seconds.items()}


def timed(call: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        result = call(*arguments, **options)
        times.append(time.perf_counter() - begun)
        return result

    return run


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256, help="that decode at once")
    parser.add_argument("--context", type=int, default=8192, help="tokens of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| {options.requests} x {options.context} | {' | '.join(PARTS)} |\n|{'---|' * (len(PARTS) + 1)}")
    for shared in (0, SHARED):
        found = time_of(options.requests, options.context, shared)
        name = f"{shared} shared" if shared else "nothing shared"
        print(f"| {name} | {' | '.join(f'{found[part]:.2f}' for part in PARTS)} |", flush=True)


if __name__ == "__main__":
    main()
