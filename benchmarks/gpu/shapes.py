"""Llama-3.1-8B's attention, and batches for it without an engine around them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater_engine.kernels.gpu import TritonKernels
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, CacheSpec, LayerCache

HEADS, KV_HEADS, DIM, HIDDEN, INTERMEDIATE, LAYERS = 32, 8, 128, 4096, 14336, 32
KV_BYTES = 2 * KV_HEADS * DIM * 2
"""Of one token in one layer, in bfloat16."""
DEVICE = torch.device("cuda")


def kernels() -> TritonKernels:
    return TritonKernels(torch.bfloat16, DEVICE)


def random_cache(blocks: int) -> LayerCache:
    cache = kernels().allocate(blocks, CacheSpec(KV_HEADS, DIM, DIM))
    cache.keys.normal_()
    cache.values.normal_()
    return cache


def batch(contexts: Sequence[int], new: Sequence[int]) -> AttentionBatch:
    """Sequences of `contexts` tokens whose last `new` are computed, over blocks in random order, from 0 on."""
    counts = [-(-context // BLOCK_SIZE) for context in contexts]
    order = torch.randperm(sum(counts), dtype=torch.int32)
    tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    for row, blocks in zip(tables, order.split(counts), strict=True):
        row[: len(blocks)] = blocks
    positions = torch.cat([torch.arange(c - n, c) for c, n in zip(contexts, new, strict=True)])
    rows = torch.repeat_interleave(torch.arange(len(contexts)), torch.tensor(new))
    slots = tables[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    return AttentionBatch(
        positions=positions.to(DEVICE),
        slots=slots.to(DEVICE),
        block_tables=tables.to(DEVICE),
        query_starts=torch.tensor([0, *new]).cumsum(0).int().to(DEVICE),
        context_lengths=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
        longest_query=max(new),
        longest_context=max(contexts),
    )


def blocks_of(contexts: Sequence[int]) -> int:
    return sum(-(-context // BLOCK_SIZE) for context in contexts)


def random_queries(tokens: int) -> Tensor:
    return torch.randn(tokens, HEADS, DIM, device=DEVICE, dtype=torch.bfloat16)
