"""Brings a worker up: device, kernels, weights, a trial of its memory, KV cache, recorded steps."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
import torch

from headwater_engine.config import EngineSettings
from headwater_engine.core.step import Worker
from headwater_engine.distributed.counted import CountedRanks
from headwater_engine.distributed.lifeline import Lifeline
from headwater_engine.distributed.meet import check_alike, find_ranks
from headwater_engine.distributed.place import Place
from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.errors import DeviceMemoryError, LoadError
from headwater_engine.kernels import find_device, select
from headwater_engine.kernels.cpu import CppKernels
from headwater_engine.kernels.interface import BLOCK_SIZE, LayerCache
from headwater_engine.models.dtypes import weights_dtype
from headwater_engine.models.loading import load_model
from headwater_engine.models.pooled import load_pooled
from headwater_engine.models.pooling import Pooling, plan_pooling
from headwater_engine.models.source import fingerprint, resolve
from headwater_engine.models.weighing import weigh
from headwater_engine.worker.device import device_checked
from headwater_engine.worker.graphs import cuda_recorder, ladder
from headwater_engine.worker.layers import LayerCaches
from headwater_engine.worker.memory import GIB, check_fits, count_blocks, keep_freed_memory, room_on_cpu
from headwater_engine.worker.pooler import Pooler
from headwater_engine.worker.pooling import PoolingWorker
from headwater_engine.worker.recorded import RecordedModel
from headwater_engine.worker.trial import measure, unloaded
from headwater_engine.worker.worker import ModelWorker

log = structlog.get_logger(__name__)

Progress = Callable[[float, str], None]
"""Is told the fraction of a phase that is done, 0 to 1, and the phase."""


@dataclass(slots=True, frozen=True)
class Loaded:
    """A worker that is ready, and what the engine must know of it."""

    worker: Worker
    depth: int
    """How many steps should be under way while the next one is planned."""
    kernels: str
    vocab_size: int
    max_model_len: int
    blocks: int
    block_size: int
    """Tokens in one block."""
    reuses_prompts: bool = True
    """Whether keys and values are all that a later token needs of a prompt."""
    whole_prompts: bool = False
    """Whether none can be cut into chunks."""
    checks: bool = False
    """Whether tokens of forms are drawn without masks, as a rule, and looked at then (`Judge`).

    On a CPU, whose threads compute, so that a mask takes its time from the forward pass, and to look at a token takes a
    tenth of it. On a GPU masks are made while that computes, for nothing, and to look at a token would be to wait for
    it; ranks would have to draw twice together.
    """


def load(
    settings: EngineSettings,
    progress: Progress,
    beat: Callable[[], None],
    place: Place | None = None,
    lifeline: Lifeline | None = None,
) -> Loaded:
    """`beat` is called as each layer of each step begins. `place`: of this rank, where it is one of several; and its
    `lifeline` is told of sums.

    Raises LoadError, KVCacheSizeError or DeviceError with a sentence for the user.
    """
    device = find_device(settings.device, 0 if place is None else place.local_rank)
    try:
        with device_checked(device):
            return _load(settings, device, progress, beat, place, lifeline)
    except DeviceMemoryError as error:
        taken, total = torch.cuda.memory_allocated(device) / GIB, torch.cuda.mem_get_info(device)[1] / GIB
        raise LoadError(
            f"The model does not fit: {taken:.1f} GiB of it were on the GPU, which has {total:.1f} GiB, when there was "
            f"no more memory. Lower --max-batched-tokens or --max-num-seqs, or take a larger GPU. {error.__cause__}"
        ) from error


def _load(
    settings: EngineSettings,
    device: torch.device,
    progress: Progress,
    beat: Callable[[], None],
    place: Place | None,
    lifeline: Lifeline | None,
) -> Loaded:
    neighbours = 1 if place is None else place.local_size
    torch.set_num_threads(max(1, (settings.threads or len(os.sched_getaffinity(0))) // neighbours))
    progress(0.0, "ranks")
    ranks: Ranks = ALONE if place is None else find_ranks(place, device)
    if place is not None and lifeline is not None and device.type == "cpu":
        ranks = CountedRanks(ranks, lifeline)
    folder = resolve(settings.model, settings.revision)
    plan = plan_pooling(folder, settings.runner, settings.pooling)
    # At first use the C++ kernels are compiled, which takes a minute or two.
    progress(0.0, "kernels")
    kernels = select(weights_dtype(folder, settings.dtype, device), device, settings.kv_cache_dtype)
    if ranks.size > 1:
        check_alike(ranks, device, {"model": fingerprint(folder), "type of activations": str(kernels.dtype)})
    if device.type == "cuda":
        weighed, specs = weigh(folder, plan, dtype=kernels.dtype, ranks=ranks)
        footprint = unloaded(device, weighed, settings.gpu_memory_utilization)
        check_fits(settings, sum(map(kernels.bytes_per_block, specs)), footprint)
    seats, budget = settings.max_num_seqs, settings.max_batched_tokens

    def weights(fraction: float) -> None:
        progress(fraction, "weights")

    make: Callable[..., Worker]
    if plan is None:
        model = load_model(folder, kernels=kernels, dtype=settings.dtype, ranks=ranks, progress=weights)
        recordable = model.recordable and not settings.enforce_eager
        records = recordable and device.type == "cuda"
        # What ranks say to one another is no kernel.
        if recordable and isinstance(kernels, CppKernels) and ranks.size == 1:
            model = RecordedModel(model, kernels.recorder())
        config, make = model.config, partial(ModelWorker, model, ranks=ranks)
    else:
        pooled, head = load_pooled(folder, plan, kernels=kernels, dtype=settings.dtype, ranks=ranks, progress=weights)
        config, make = pooled.config, partial(PoolingWorker, pooled, Pooler(plan.pooling, head, seats))
        records = False
    keep_freed_memory()
    wanted = settings.max_model_len or min(config.max_positions, (plan and plan.longest) or config.max_positions)
    if wanted > config.max_positions:
        raise LoadError(f"--max-model-len {wanted} is more than the {config.max_positions} positions of this model.")
    if plan is not None and plan.encoder:
        budget = max(budget, wanted)

    def make_worker(caches: list[LayerCache], longest: int) -> Worker:
        return make(LayerCaches(caches, beat), kernels, seats=seats, longest=longest, budget=budget)

    if not config.caches:
        room = None
    elif device.type == "cuda":
        progress(0.0, "trial steps")
        room = measure(
            lambda: make_worker([kernels.allocate(1, spec) for spec in config.caches], wanted),
            device,
            seats=seats,
            budget=budget,
            longest=wanted,
            utilization=settings.gpu_memory_utilization,
            record=cuda_recorder() if records else None,
        ).room()
    else:
        room = room_on_cpu(neighbours)
    if room is None:
        blocks = seats * (-(-wanted // BLOCK_SIZE) + 1)  # numbers for the scheduler, of nothing
    else:
        bytes_per_block = sum(map(kernels.bytes_per_block, config.caches))
        blocks = ranks.least(count_blocks(settings, bytes_per_block, wanted, room))
    max_model_len = min(wanted, blocks * BLOCK_SIZE)
    if max_model_len < wanted:
        log.warning("the KV cache is smaller than the model's context", blocks=blocks, max_model_len=max_model_len)
    caches = []
    for layer, spec in enumerate(config.caches):
        progress(layer / len(config.caches), "KV cache")
        caches.append(kernels.allocate(blocks + 1, spec))  # one that is nobody's
    worker = make_worker(caches, max_model_len)
    if records:
        assert isinstance(worker, ModelWorker)
        worker.record(cuda_recorder(), ladder(seats), spare_block=blocks, tell=lambda f: progress(f, "recorded steps"))
    return Loaded(
        worker,
        int(device.type == "cuda" and plan is None),
        kernels.name,
        config.vocab_size,
        max_model_len,
        blocks,
        BLOCK_SIZE,
        reuses_prompts=plan is None or (plan.pooling is Pooling.LAST and not plan.encoder),
        whole_prompts=plan is not None and plan.encoder,
        checks=device.type == "cpu" and plan is None and ranks.size == 1,
    )
