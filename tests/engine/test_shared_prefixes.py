"""Attention of sequences that have blocks in common: computed once for all of them, with the results of each alone."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, CacheSpec, Kernels, LayerCache
from headwater_engine.kernels.reference import TorchKernels
from tests.engine.batches import random

FLOAT = CppKernels(torch.float32, Products.FLOAT32)
HALF = CppKernels(torch.bfloat16, Products.BFLOAT16)
BLOCKS = 90
PART = 12
"""Blocks that are computed together (`plan.h`)."""


def batch_of(tables: Sequence[Sequence[int]], contexts: Sequence[int], new: Sequence[int]) -> AttentionBatch:
    """The last `new` tokens of each sequence."""
    padded = torch.zeros(len(tables), max(map(len, tables)), dtype=torch.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = torch.tensor(table)
    places = torch.zeros(sum(new), dtype=torch.long)
    return AttentionBatch(
        positions=places,
        slots=places,
        block_tables=padded,
        query_starts=torch.tensor([0, *new]).cumsum(0).int(),
        context_lengths=torch.tensor(contexts, dtype=torch.int32),
        longest_query=max(new),
        longest_context=max(contexts),
    )


def filled(kernels: Kernels, heads: int, dim: int) -> LayerCache:
    """A cache whose blocks all hold something."""
    cache = kernels.allocate(BLOCKS, CacheSpec(heads, dim, dim))
    keys, values = (random(BLOCKS * BLOCK_SIZE, heads, dim, seed=seed).to(kernels.dtype) for seed in (1, 2))
    kernels.write_cache(keys, values, cache, torch.arange(BLOCKS * BLOCK_SIZE))  # type: ignore[attr-defined]
    return cache


def attended(
    kernels: Kernels, batch: AttentionBatch, heads: int, kv_heads: int, queries: Tensor, window: int | None = None
) -> Tensor:
    cache = filled(kernels, kv_heads, queries.shape[2])
    return kernels.paged_attention(queries.to(kernels.dtype), cache, batch, scale=0.2, window=window)  # type: ignore[attr-defined]


@st.composite
def sharing(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[int]]:
    """Tables, contexts and numbers of new tokens, where each table begins as much as it likes like an earlier one."""
    tables: list[list[int]] = []
    contexts, new = [], []
    free = iter(draw(st.permutations(range(BLOCKS))))
    for _ in range(draw(st.integers(1, 7))):
        like = draw(st.sampled_from(tables)) if tables else []
        common = like[: draw(st.one_of(st.integers(0, len(like)), st.sampled_from([0, PART, 2 * PART])))]
        own = [block for _, block in zip(range(draw(st.integers(0 if common else 1, 9))), free, strict=False)]
        table = common + own or [0]
        tables.append(table)
        contexts.append(draw(st.integers(max(1, (len(table) - 1) * BLOCK_SIZE), len(table) * BLOCK_SIZE)))
        new.append(min(contexts[-1], draw(st.sampled_from([1, 1, 1, 5, 30]))))
    return tables, contexts, new


@settings(max_examples=150, deadline=None)
@given(sharing(), st.sampled_from([(4, 4), (9, 3), (8, 1)]), st.sampled_from([None, 7, 200, 400]))
def test_sequences_that_share_blocks_attend_as_the_reference_does(
    case: tuple[list[list[int]], list[int], list[int]], heads: tuple[int, int], window: int | None
) -> None:
    batch = batch_of(*case)
    queries = random(sum(case[2]), heads[0], 20)
    expected = attended(TorchKernels(), batch, *heads, queries, window)
    torch.testing.assert_close(attended(FLOAT, batch, *heads, queries, window), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", [FLOAT, HALF], ids=["float32", "bfloat16"])
@settings(max_examples=60, deadline=None)
@given(case=sharing(), window=st.sampled_from([None, 200]))
def test_a_row_of_attention_does_not_depend_on_its_batch(
    kernels: CppKernels, case: tuple[list[list[int]], list[int], list[int]], window: int | None
) -> None:
    """To the last bit, whoever else has its blocks."""
    queries = random(sum(case[2]), 6, 20)
    together = attended(kernels, batch_of(*case), 6, 2, queries, window).split(case[2])
    for table, context, new, rows, own in zip(*case, together, queries.split(case[2]), strict=True):
        alone = attended(kernels, batch_of([table], [context], [new]), 6, 2, own, window)
        assert torch.equal(rows, alone)


def test_blocks_that_several_sequences_have_are_read_once() -> None:
    """Four of 1,024 tokens and some, of which they share the first 960: five tasks a head for these."""
    shared = list(range(64))
    tables = [[*shared, 70 + n] for n in range(4)]
    batch = batch_of(tables, [64 * BLOCK_SIZE + 3] * 4, [1] * 4)
    alone = batch_of(tables[:1], [64 * BLOCK_SIZE + 3], [1])
    attended(FLOAT, batch, 9, 3, random(4, 9, 20))
    attended(FLOAT, alone, 9, 3, random(1, 9, 20))
    (plan,), (plan_of_one,) = batch.plans.values(), alone.plans.values()
    assert (len(plan_of_one), len(plan)) == (3 * 6, 3 * (5 + 4))  # type: ignore[arg-type]


def test_layers_of_one_kind_share_a_plan_and_fewer_rows_have_their_own() -> None:
    batch = batch_of([[3, 4], [5]], [20, 9], [20, 1])
    for window in (None, None, 8, None, 8):
        attended(FLOAT, batch, 6, 2, random(21, 6, 20), window)
    assert len(batch.plans) == 2
    assert not batch.only(torch.tensor([19, 20])).plans
