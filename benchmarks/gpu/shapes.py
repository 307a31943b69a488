"""Llama-3.1-8B's attention, and batches for it without an engine around them."""

from collections.abc import Sequence

import numpy as np
import torch
from measure import DEVICE
from torch import Tensor

from headwater_engine.kernels.gpu import TritonKernels
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, CacheSpec, LayerCache
from headwater_engine.kernels.prefixes import as_numbers, as_prefixes, find_groups
from headwater_engine.models.shapes import SHAPES

MODEL = SHAPES["llama-3.1-8b"]
HEADS, KV_HEADS, HIDDEN = MODEL["num_attention_heads"], MODEL["num_key_value_heads"], MODEL["hidden_size"]
INTERMEDIATE, LAYERS, VOCABULARY = MODEL["intermediate_size"], MODEL["num_hidden_layers"], MODEL["vocab_size"]
DIM = HIDDEN // HEADS
DTYPE = torch.bfloat16
KV_BYTES = 2 * KV_HEADS * DIM * 2
"""Of one token in one layer."""


def kernels(kv_dtype: torch.dtype | None = None) -> TritonKernels:
    return TritonKernels(DTYPE, DEVICE, kv_dtype)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def random_cache(blocks: int, kv_dtype: torch.dtype | None = None) -> LayerCache:
    cache = kernels(kv_dtype).allocate(blocks, CacheSpec(KV_HEADS, DIM, DIM))
    for tensor in (cache.keys, cache.values):
        tensor.copy_(random(*tensor.shape))
    return cache


def batch(contexts: Sequence[int], new: Sequence[int], shared: int = 0) -> AttentionBatch:
    """Sequences of `contexts` tokens whose last `new` are computed, over blocks in random order, from 0 on.

    All begin with the blocks of the first one's `shared` tokens.
    """
    counts = [-(-context // BLOCK_SIZE) for context in contexts]
    order = torch.randperm(sum(counts), dtype=torch.int32)
    tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    for row, blocks in zip(tables, order.split(counts), strict=True):
        row[: len(blocks)] = blocks
        row[: shared // BLOCK_SIZE] = tables[0, : shared // BLOCK_SIZE]
    positions = torch.cat([torch.arange(c - n, c) for c, n in zip(contexts, new, strict=True)])
    rows = torch.repeat_interleave(torch.arange(len(contexts)), torch.tensor(new))
    slots = tables[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    decodes = next((place for place, count in enumerate(new) if count > 1), len(new))
    groups = find_groups(tables.numpy()[:decodes], np.array(contexts[:decodes]))
    numbers = torch.from_numpy(as_numbers(groups, len(contexts))).to(DEVICE)
    return AttentionBatch(
        positions=positions.to(DEVICE),
        slots=slots.to(DEVICE),
        block_tables=tables.to(DEVICE),
        query_starts=torch.tensor([0, *new]).cumsum(0).int().to(DEVICE),
        context_lengths=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
        longest_query=max(new),
        longest_context=max(contexts),
        decodes=decodes,
        prefixes=as_prefixes(numbers, len(contexts)) if groups else None,
    )


def blocks_of(contexts: Sequence[int]) -> int:
    return sum(-(-context // BLOCK_SIZE) for context in contexts)


def random_queries(tokens: int) -> Tensor:
    return random(tokens, HEADS, DIM)


def random_tokens(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), device=DEVICE)
