"""Where the time of an engine step goes on CPU: one prefill step and one decode step, by kernel.

    python benchmarks/engine_profile.py FOLDER [--dtype bfloat16] [--batch 32] [--prompt 256]

FOLDER is a Hugging Face folder. `floor` is what the products of the step take by themselves, one after the other, when
nothing else is between them. Prints Markdown tables of medians; the last one has decoding steps as they are served,
recorded, in turns with such as Python launches kernel by kernel, none of them timed.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.kernels import select
from headwater_engine.kernels.cpu import CppKernels
from headwater_engine.kernels.interface import BLOCK_SIZE, Kernels, Lookup, Product
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
from headwater_engine.quantization.stored import StoredWeight
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.memory import keep_freed_memory
from headwater_engine.worker.recorded import RecordedModel
from headwater_engine.worker.worker import ModelWorker


class TimedKernels:
    """Passes everything on, and adds up what each kernel takes."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.seconds: dict[str, float] = defaultdict(float)
        self.products: list[tuple[Product, int]] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kernels, name)
        return self._timed(name, value) if callable(value) and name not in ("allocate", "bytes_per_block") else value

    def linear(self, parts: Sequence[StoredWeight], bias: torch.Tensor | None = None, *, wide: bool = False) -> Product:
        product = self._kernels.linear(parts, bias, wide=wide)
        inputs, outputs = parts[0].shape[1], sum(part.shape[0] for part in parts)
        self.products.append((product, inputs))
        return self._timed(f"product {inputs} to {outputs}", product)

    def gated(self, gate: StoredWeight, up: StoredWeight, bias: torch.Tensor | None = None) -> Product:
        product = self._kernels.gated(gate, up, bias)
        outputs, inputs = gate.shape
        self.products.append((product, inputs))
        return self._timed(f"product {inputs} to 2 x {outputs}, gated", product)

    def tied(self, table: StoredWeight) -> tuple[Lookup, Product]:
        look_up, product = self._kernels.tied(table)
        outputs, inputs = table.shape
        self.products.append((product, inputs))
        return self._timed("embedding", look_up), self._timed(f"product {inputs} to {outputs}", product)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - begun
            return result

        return timed


def steps(engine: Engine, kernels: TimedKernels) -> list[tuple[int, dict[str, float]]]:
    """Run to the end. For each step: how many outputs it gave, and its seconds by kernel and in all."""
    found = []
    while engine.has_work:
        kernels.seconds.clear()
        begun = time.perf_counter()
        outputs = len(engine.step())
        kernels.seconds["whole step"] = time.perf_counter() - begun
        found.append((outputs, dict(kernels.seconds)))
    return found


def table(title: str, measured: list[dict[str, float]], floor: float) -> None:
    medians = {name: statistics.median(each[name] for each in measured) for name in measured[0]}
    whole = medians["whole step"]
    medians["everything else"] = 2 * whole - sum(medians.values())
    print(f"\n{title}: {len(measured)} steps, floor {1e3 * floor:.1f} ms\n\n| part | ms | share |\n|---|---|---|")
    for name, seconds in sorted(medians.items(), key=lambda pair: -pair[1]):
        print(f"| {name} | {1e3 * seconds:.2f} | {seconds / whole:.1%} |")


def floor(kernels: TimedKernels, rows: int, logit_rows: int) -> float:
    """Seconds of all products of a step; the first one is that of the logits."""
    xs = {inputs: torch.randn(rows, inputs, dtype=kernels.dtype) for _, inputs in kernels.products}
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for product, inputs in kernels.products[1:]:
            product(xs[inputs])
        product, inputs = kernels.products[0]
        product(xs[inputs][:logit_rows])
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def make_engine(model: Model, kernels: Kernels, options: argparse.Namespace) -> Engine:
    """With the requests waiting."""
    config, longest = model.config, options.prompt + 64
    blocks = options.batch * (-(-longest // BLOCK_SIZE) + 1) + 8
    caches = [kernels.allocate(blocks, spec) for spec in config.caches]
    cache = PrefixCache(blocks, BLOCK_SIZE, reuse=False)
    scheduler = Scheduler(cache, max_num_seqs=options.batch, max_batched_tokens=options.budget)
    worker = ModelWorker(model, caches, kernels, seats=options.batch, longest=longest, budget=options.budget)
    engine = Engine(scheduler, worker, max_model_len=longest, vocab_size=config.vocab_size)
    torch.manual_seed(0)
    for number in range(options.batch):
        prompt = torch.randint(100, 10_000, (options.prompt,)).tolist()
        engine.add(Generate(id=str(number), prompt=prompt, params=SamplingParams(temperature=0, max_tokens=33)))
    return engine


def decodes(engine: Engine, batch: int) -> list[float]:
    """Seconds of the steps in which all requests decode."""
    found = []
    while engine.has_work:
        begun = time.perf_counter()
        outputs = len(engine.step())
        if outputs == batch:
            found.append(time.perf_counter() - begun)
    return found


def as_served(options: argparse.Namespace) -> None:
    """Prints whole decoding steps, recorded and not."""
    kernels = select(getattr(torch, options.dtype))
    if not isinstance(kernels, CppKernels):
        return
    plain = load_model(resolve(options.folder), kernels=kernels, dtype=options.dtype)
    recorded = RecordedModel(plain, kernels.recorder())
    measured: tuple[list[float], list[float]] = ([], [])
    for turn in range(4):
        for model, into in zip((plain, recorded), measured, strict=True):
            each = decodes(make_engine(model, kernels, options), options.batch)
            into.extend(each if turn else [])  # in the first one it is recorded
    before, after = (1e3 * statistics.median(each) for each in measured)
    print(f"\nDecode, {options.batch} requests, whole steps, {len(measured[1])} of each\n\n| | ms |\n|---|---|")
    print(f"| kernel by kernel | {before:.1f} |\n| recorded | {after:.1f} ({after / before:.2f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="Hugging Face folder of the model")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--batch", type=int, default=32, help="requests at once")
    parser.add_argument("--prompt", type=int, default=256, help="tokens in each prompt")
    parser.add_argument("--budget", type=int, default=512, help="tokens in a step")
    options = parser.parse_args()
    kernels = TimedKernels(select(getattr(torch, options.dtype)))
    model = load_model(resolve(options.folder), kernels=kernels, dtype=options.dtype)  # type: ignore[arg-type]
    keep_freed_memory()
    engine = make_engine(model, kernels, options)  # type: ignore[arg-type]
    measured = steps(engine, kernels)
    # Of the first steps nearly all tokens are prompts'; later on, more and more requests decode along.
    prefill = measured[1 : max(2, options.batch * options.prompt // options.budget // 3)]
    decode = [seconds for outputs, seconds in measured if outputs == options.batch]
    if options.batch * options.prompt >= 2 * options.budget:
        table(
            f"Prefill, {options.budget} tokens", [seconds for _, seconds in prefill], floor(kernels, options.budget, 2)
        )
    table(f"Decode, {options.batch} requests", decode, floor(kernels, options.batch, options.batch))
    as_served(options)


if __name__ == "__main__":
    main()
