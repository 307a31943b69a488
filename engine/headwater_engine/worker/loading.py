"""Brings a worker up: device, kernels, weights, KV cache, first steps."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch

from headwater_engine.config import EngineSettings
from headwater_engine.distributed.place import Place
from headwater_engine.distributed.ranks import ALONE, meet
from headwater_engine.errors import LoadError
from headwater_engine.kernels import find_device, select
from headwater_engine.kernels.interface import BLOCK_SIZE
from headwater_engine.models.dtypes import weights_dtype
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.worker.graphs import cuda_recorder
from headwater_engine.worker.layers import LayerCaches
from headwater_engine.worker.memory import count_blocks, find_room, keep_freed_memory
from headwater_engine.worker.worker import ModelWorker

log = structlog.get_logger(__name__)

Progress = Callable[[float, str], None]
"""Is told the fraction of a phase that is done, 0 to 1, and the phase."""


@dataclass(slots=True, frozen=True)
class Loaded:
    """A worker that is ready, and what the engine must know of it."""

    worker: ModelWorker
    depth: int
    """How many steps should be under way while the next one is planned."""
    kernels: str
    vocab_size: int
    max_model_len: int
    blocks: int
    block_size: int
    """Tokens in one block."""


def load(settings: EngineSettings, progress: Progress, beat: Callable[[], None], place: Place | None = None) -> Loaded:
    """`beat` is called as each layer of each step begins. `place`: of this rank, where it is one of several.

    Raises LoadError or KVCacheSizeError with a sentence for the user.
    """
    try:
        return _load(settings, progress, beat, place)
    except torch.OutOfMemoryError as error:
        raise LoadError(
            f"The GPU has too little memory; lower --kv-cache-gib or --max-batched-tokens. {error}"
        ) from error


def _load(settings: EngineSettings, progress: Progress, beat: Callable[[], None], place: Place | None) -> Loaded:
    neighbours = 1 if place is None else place.local_size
    torch.set_num_threads(max(1, (settings.threads or len(os.sched_getaffinity(0))) // neighbours))
    device = find_device(settings.device, 0 if place is None else place.local_rank)
    progress(0.0, "ranks")
    ranks = ALONE if place is None else meet(place, device)
    folder = resolve(settings.model, settings.revision)
    # At first use the C++ kernels are compiled, which takes a minute or two.
    progress(0.0, "kernels")
    kernels = select(weights_dtype(folder, settings.dtype, device), device, settings.kv_cache_dtype)
    model = load_model(
        folder, kernels=kernels, dtype=settings.dtype, ranks=ranks, progress=lambda f: progress(f, "weights")
    )
    keep_freed_memory()
    config = model.config
    wanted = settings.max_model_len or config.max_positions
    if wanted > config.max_positions:
        raise LoadError(f"--max-model-len {wanted} is more than the {config.max_positions} positions of this model.")
    bytes_per_block = sum(map(kernels.bytes_per_block, config.caches))
    blocks = ranks.least(count_blocks(settings, bytes_per_block, wanted, find_room(device, neighbours)))
    max_model_len = min(wanted, blocks * BLOCK_SIZE)
    if max_model_len < wanted:
        log.warning("the KV cache is smaller than the model's context", blocks=blocks, max_model_len=max_model_len)
    caches = []
    for layer, spec in enumerate(config.caches):
        progress(layer / len(config.caches), "KV cache")
        caches.append(kernels.allocate(blocks + 1, spec))  # one that is nobody's
    layers = LayerCaches(caches, beat)
    worker = ModelWorker(model, layers, kernels, seats=settings.max_num_seqs, longest=max_model_len, ranks=ranks)
    if device.type == "cuda":
        progress(0.0, "first steps")
        worker.warm_up(
            budget=settings.max_batched_tokens,
            sequences=settings.max_num_seqs,
            longest=max_model_len,
            spare_block=blocks,
            record=cuda_recorder(),
        )
    return Loaded(
        worker, int(device.type == "cuda"), kernels.name, config.vocab_size, max_model_len, blocks, BLOCK_SIZE
    )
