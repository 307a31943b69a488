"""Steps of nobody, before there are requests: they compile kernels, and show how much memory there must be for a step.

On a GPU, what the KV cache leaves free is lost, and what it takes too much ends the engine in the middle of traffic. So
nothing is guessed: the largest steps that there can be go through launch and sample, and are measured, with a cache of
one block that all their requests share. So are recorded steps, of which the two largest show what all will take: they
lie in one pool of memory that the largest fills, and each further one adds what the second does, or less. They are
recorded again for good when the KV cache is there, whose address is in them.
"""

import gc
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import cast

import torch

from headwater_engine.core.step import Seat, Span, Step, Worker
from headwater_engine.kernels.interface import BLOCK_SIZE, Recorder
from headwater_engine.kernels.prefixes import WORTH
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.graphs import ladder
from headwater_engine.worker.memory import Footprint
from headwater_engine.worker.worker import ModelWorker

PLAIN = SamplingParams(max_tokens=1, temperature=0)
SHARED = WORTH + 2 * BLOCK_SIZE
"""Tokens that are worth sharing: what has one block over and over has it all in common."""
DEAREST = SamplingParams(
    max_tokens=1,
    temperature=0.7,
    top_k=50,
    top_p=0.9,
    presence_penalty=0.1,
    logprobs=20,
    logit_bias={0: 1.0},
    allowed_token_ids=(0, 1),
)
"""All that a request can ask of the sampler."""


def trial_steps(*, seats: int, budget: int, longest: int) -> Iterator[Step]:
    """Steps of each kind, the largest that there can be, of requests that have but block 0, over and over again.

    `budget` tokens of a step, `seats` requests at once, `longest` context.
    """
    prompt, each = min(budget, longest), min(max(1, budget // seats), longest)
    for number, (count, new, context, params) in enumerate(
        [
            (1, prompt, prompt, PLAIN),
            (1, 1, longest, PLAIN),
            (seats, 1, 1, PLAIN),
            (seats, 1, min(longest, SHARED), PLAIN),
            (seats, each, each, DEAREST),
            (1, 1, longest, DEAREST),
        ]
    ):
        seated = [Seat(index, [0] * context, 0, params) for index in range(count)]
        blocks = [(index, [0] * -(-context // BLOCK_SIZE)) for index in range(count)]
        spans = [Span(index, context - new, new, 1, 0) for index in range(count)]
        yield Step(number, left=list(range(seats)), seated=seated, blocks=blocks, drafts=[], spans=spans)


def run_trial(worker: Worker, *, seats: int, budget: int, longest: int) -> None:
    for step in trial_steps(seats=seats, budget=budget, longest=longest):
        worker.launch(step)
        worker.sample().wait()


def measure(
    make_worker: Callable[[], Worker],
    device: torch.device,
    *,
    seats: int,
    budget: int,
    longest: int,
    utilization: float,
    record: Recorder | None,
) -> Footprint:
    """What the GPU's memory goes to, once the weights are loaded.

    `make_worker` makes a worker whose caches have one block; `record` records steps, where that is wanted, of
    a worker of a model that generates.
    """
    weights = torch.cuda.memory_allocated(device)
    free, total = _free(device), torch.cuda.mem_get_info(device)[1]
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    worker = make_worker()
    run_trial(worker, seats=seats, budget=budget, longest=longest)
    step = torch.cuda.max_memory_reserved(device) - before
    graphs = 0 if record is None else _measure_graphs(cast("ModelWorker", worker), device, record, ladder(seats))
    del worker, record
    _free(device)
    return Footprint(total, utilization, weights, total - free - weights, step, graphs)


def unloaded(device: torch.device, weights: int, utilization: float) -> Footprint:
    """What is known of the GPU's memory before there is anything of the model, which will have `weights` bytes."""
    free, total = torch.cuda.mem_get_info(device)
    return Footprint(total, utilization, weights, total - free, 0, 0)


def _measure_graphs(worker: ModelWorker, device: torch.device, record: Recorder, sizes: list[int]) -> int:
    free: list[int] = []
    worker.record(record, sizes[:2], spare_block=0, tell=lambda _: free.append(_free(device)))
    free.append(_free(device))
    first, *others = (before - after for before, after in pairwise(free))
    return max(0, first) + sum(max(0, other) * (len(sizes) - 1) for other in others)


def _free(device: torch.device) -> int:
    """Memory that nobody has, in bytes, when torch keeps none for later."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
