"""Whole steps of a random Llama-3.1-8B on one GPU, over the floor that reading weights and KV sets.

    PYTHONPATH=engine python benchmarks/gpu/step.py

`step` is what is served: from one step's tokens to the next one's, with recorded decoding steps, each planned and
launched while the one before it runs (depth 1). `host` is what the host takes of it, all but its waiting for tokens: in
a step that overlaps, what is less than the step costs nothing. `depth 0` is the same step by itself: schedule, launch,
sample, tokens home; `eager` is what would be served without a recording. `forward` is what the kernels take by
themselves, and `launching` what Python takes to launch them one by one. The floor is (weights + KV of all contexts) /
the bandwidth of a copy in this run. Prompts, which are read at depth 0: two operations for each weight and token, over
the rate of a large product in this run.
"""

import statistics
import time
from collections.abc import Collection
from typing import NamedTuple

import measure
import shapes
import torch
from floors import decode_bytes
from measure import Ceilings, Report
from shapes import DTYPE, KV_BYTES, LAYERS, MODEL, VOCABULARY
from torch import Tensor

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.core.step import Pending, Result, Step, TokenMasks
from headwater_engine.kernels.interface import BLOCK_SIZE, LayerCache
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.weights import Weights
from headwater_engine.models.config import RawConfig
from headwater_engine.models.decoder import Decoder
from headwater_engine.models.families.llama import FAMILY
from headwater_engine.quantization.stored import StoredWeight
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.graphs import cuda_recorder, ladder
from headwater_engine.worker.trial import run_trial
from headwater_engine.worker.worker import ModelWorker

PROMPT = 1024
BUDGET = 8192
"""Tokens of a step."""
STEPS = 24
"""Decoding steps that are timed at each depth, the first ones to warm up."""
WARM = 2
SEQUENCES = (1, 8, 32, 128, 256)
MOST = SEQUENCES[-1]
"""Sequences at once."""


class MadeOnTheGPU:
    """A checkpoint of random weights that come from nowhere: 8 billion numbers from a CPU would take a minute."""

    def __init__(self) -> None:
        self.bytes_read_a_step = 0
        self.head_bytes = 0
        """Of those, what is read for tokens that are to be sampled only."""

    def names(self) -> Collection[str]:
        return ()

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        if "embed_tokens" not in name:  # of which a step reads a few rows
            self.bytes_read_a_step += 2 * torch.Size(shape).numel()
        if "lm_head" in name:
            self.head_bytes = 2 * torch.Size(shape).numel()
        if "norm" in name:
            return StoredWeight(torch.ones(shape, device=measure.DEVICE, dtype=DTYPE))
        return StoredWeight(torch.empty(shape, device=measure.DEVICE, dtype=DTYPE).normal_(std=0.02))


class Decoded(NamedTuple):
    """Of a run of the engine, the steps in which all sequences decode."""

    step: float
    """Seconds from one to the next, median."""
    host: float
    """Of those, seconds in which the host does not wait for the GPU, median."""
    context: float
    """Tokens of a sequence then, mean."""


class Ran(NamedTuple):
    """What a run of the engine took."""

    alone: Decoded
    """At depth 0, so that a step's own time is seen."""
    served: Decoded
    """At depth 1, as `headwater serve` runs on a GPU."""
    prompt_rate: float
    """Prompt tokens a second."""


class Timed:
    """A worker that knows how long its results were waited for."""

    def __init__(self, worker: ModelWorker) -> None:
        self._worker = worker
        self._pending: Pending | None = None
        self.waited = 0.0

    def launch(self, step: Step) -> None:
        self._worker.launch(step)

    def sample(self, masks: TokenMasks | None = None) -> Pending:
        self._pending = self._worker.sample(masks)
        return self

    def wait(self) -> Result:
        assert self._pending is not None
        begun = time.perf_counter()
        result = self._pending.wait()
        self.waited = time.perf_counter() - begun
        return result


def worker_of(model: Decoder, caches: list[LayerCache]) -> ModelWorker:
    return ModelWorker(model, caches, shapes.kernels(), seats=MOST, longest=2 * PROMPT, budget=BUDGET)


def run_engine(worker: ModelWorker, caches: list[LayerCache], sequences: int) -> Ran:
    """Prompts, then steps at depth 0, then at depth 1: one reading of prompts serves for both."""
    cache = PrefixCache(len(caches[0].keys) - 1, BLOCK_SIZE, reuse=False)
    scheduler = Scheduler(cache, max_num_seqs=MOST, max_batched_tokens=BUDGET)
    timed = Timed(worker)
    engine = Engine(scheduler, timed, max_model_len=2 * PROMPT, vocab_size=VOCABULARY)
    # Those that come first decode while the last prompts are read.
    longest = 2 * STEPS + sequences * PROMPT // BUDGET + 8
    params = SamplingParams(max_tokens=longest, temperature=0, ignore_eos=True)
    for number in range(sequences):
        engine.add(Generate(id=str(number), prompt=shapes.random_tokens(PROMPT).tolist(), params=params))
    reading = 0.0
    while engine.stats().prompt_tokens_computed < sequences * PROMPT:
        begun = time.perf_counter()
        engine.step()
        reading += time.perf_counter() - begun
    alone = decode(engine, timed, sequences)
    engine._depth = 1  # nothing is under way
    served = decode(engine, timed, sequences)
    while engine.has_work:
        engine.step()
    return Ran(alone, served, sequences * PROMPT / reading)


def decode(engine: Engine, timed: Timed, sequences: int) -> Decoded:
    steps, hosts, contexts = [], [], []
    for _ in range(STEPS):
        timed.waited = 0.0
        begun = time.perf_counter()
        outputs = engine.step()
        took = time.perf_counter() - begun
        running = engine.scheduler.running
        if len(outputs) == len(running) == sequences:  # the first one at depth 1 has none yet
            steps.append(took)
            hosts.append(took - timed.waited)
            contexts.append(statistics.mean(len(request.tokens) for request in running))
    return Decoded(statistics.median(steps[WARM:]), statistics.median(hosts[WARM:]), statistics.mean(contexts[WARM:]))


def forward(model: Decoder, caches: list[LayerCache], sequences: int, context: int) -> tuple[float, float]:
    """Seconds on the GPU of a decoding step's kernels, and seconds in which Python launches them."""
    contexts = [context] * sequences
    batch, tokens = shapes.batch(contexts, [1] * sequences), shapes.random_tokens(sequences)

    def run() -> Tensor:
        return model.logits(model.forward(tokens, batch, caches)).argmax(-1)

    recorded = measure.seconds(lambda _: run(), [None])
    launching = []
    for _ in range(7):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        launching.append(time.perf_counter() - begun)
    return recorded, statistics.median(launching)


def row(
    report: Report,
    ceiling: Ceilings,
    checkpoint: MadeOnTheGPU,
    sequences: int,
    model: Decoder,
    caches: list[LayerCache],
    recorded_steps: ModelWorker,
) -> None:
    eager = run_engine(worker_of(model, caches), caches, sequences).served
    ran = run_engine(recorded_steps, caches, sequences)
    recorded, launching = forward(model, caches, sequences, round(ran.served.context))
    size = decode_bytes(checkpoint.bytes_read_a_step, KV_BYTES * LAYERS, sequences, ran.served.context)
    floor = size / ceiling.bandwidth
    report.row(
        sequences,
        floor * 1e3,
        recorded * 1e3,
        recorded / floor,
        ran.served.step * 1e3,
        ran.served.step / floor,
        ran.served.host * 1e3,
        ran.alone.step * 1e3,
        ran.alone.host * 1e3,
        eager.step * 1e3,
        launching * 1e3,
        f"{sequences / ran.served.step:.0f}",
        f"{ran.prompt_rate:.0f}",
        # two operations for each weight, which has two bytes
        (checkpoint.bytes_read_a_step - checkpoint.head_bytes) * ran.prompt_rate / ceiling.bf16,
    )


def model_of() -> tuple[Decoder, MadeOnTheGPU]:
    checkpoint = MadeOnTheGPU()
    linears = Linears(Weights(checkpoint, DTYPE), shapes.kernels())
    model = FAMILY.build(RawConfig(MODEL), linears, lambda fraction: None)
    model.reach(2 * PROMPT)
    return model, checkpoint


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    ceiling = measure.ceilings()
    print(f"copy {ceiling.bandwidth / 1e9:.0f} GB/s, bf16 product {ceiling.bf16 / 1e12:.0f} TFLOP/s")
    kernels = shapes.kernels()
    model, checkpoint = model_of()
    blocks = MOST * (-(-(PROMPT + 2 * STEPS + MOST * PROMPT // BUDGET) // BLOCK_SIZE) + 2)
    caches = [kernels.allocate(blocks, spec) for spec in model.config.caches]
    torch.cuda.empty_cache()
    columns = (
        "sequences",
        "floor ms",
        "forward ms",
        "of floor",
        "step ms",
        "of floor ",
        "host ms",
        "depth 0 ms",
        "host ms at 0",
        "eager ms",
        "launching ms",
        "output tok/s",
        "prompt tok/s",
        "of the bf16 rate",
    )
    report = Report("step", columns)
    report.note(bandwidth=ceiling.bandwidth, bf16=ceiling.bf16, weights=checkpoint.bytes_read_a_step)
    worker = worker_of(model, caches)
    begun = time.perf_counter()
    run_trial(worker, seats=MOST, budget=BUDGET, longest=2 * PROMPT)
    spare_block = len(caches[0].keys) - 1
    worker.record(cuda_recorder(), ladder(MOST), spare_block=spare_block, tell=lambda fraction: None)
    print(f"compiled and recorded in {time.perf_counter() - begun:.1f} s", flush=True)
    for sequences in SEQUENCES:
        row(report, ceiling, checkpoint, sequences, model, caches, worker)
    print(f"\nmost memory taken: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
