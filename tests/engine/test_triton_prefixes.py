"""Triton's attention reads prefixes that sequences share once, with the results of each sequence by itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, CacheSpec, LayerCache
from headwater_engine.kernels.prefixes import as_numbers, as_prefixes
from tests.engine.batches import ragged, random
from tests.engine.test_prefixes import Sharing, sharing

pytest.importorskip("triton", reason="torch for CPUs comes without Triton")

from headwater_engine.kernels.triton.attention import paged_attention
from headwater_engine.kernels.triton.tiling import Processors, Tiling, choose_shared_tiling
from tests.engine.triton_case import DEVICE, PROCESSORS, TOLERANCE, kernels_of, same


def filled(batch: AttentionBatch, cache: LayerCache, kv_heads: int, dim: int) -> None:
    """Random keys and values where a sequence of the batch sees them, NaN in all other places."""
    seen = {
        int(table[at // BLOCK_SIZE]) * BLOCK_SIZE + at % BLOCK_SIZE
        for table, context in zip(batch.block_tables, batch.context_lengths.tolist(), strict=True)
        for at in range(context)
    }
    slots = torch.tensor(sorted(seen))
    for seed, target in enumerate(cache[:2]):
        target.fill_(torch.nan)
        rows = random(len(slots), kv_heads, dim, seed=seed).to(target.device, target.dtype)
        if target.shape[1] == BLOCK_SIZE:  # the reference's order
            target[slots // BLOCK_SIZE, slots % BLOCK_SIZE] = rows
        else:
            target[slots // BLOCK_SIZE, :, slots % BLOCK_SIZE] = rows


def attend_as_the_reference(
    case: Sharing,
    heads: tuple[int, int] = (4, 2),
    worth: int = BLOCK_SIZE,
    tiling: Tiling | None = None,
    shared: Tiling | None = None,
    dtypes: tuple[torch.dtype, torch.dtype | None] = (torch.float32, None),
    dim: int = 16,
    **options: float | None,
) -> None:
    """`dtypes`: of queries, and of keys and values where it is another one."""
    ours, theirs = kernels_of(*dtypes)
    batch, kv_heads = case.batch(), heads[1]
    blocks = int(batch.block_tables.max()) + 2
    cache, reference = (each.allocate(blocks, CacheSpec(kv_heads, dim, dim)) for each in (ours, theirs))
    for each in (cache, reference):
        filled(batch, each, kv_heads, dim)
    queries, sinks = random(sum(case.new), heads[0], dim, seed=5).to(dtypes[0]), random(heads[0], seed=6)
    expected = theirs.paged_attention(queries, reference, batch, scale=0.25, sinks=sinks, **options)  # type: ignore[arg-type]
    numbers = torch.from_numpy(as_numbers(case.groups(worth), len(case.contexts))).to(DEVICE)
    moved = replace(
        batch,
        block_tables=batch.block_tables.to(DEVICE),
        query_starts=batch.query_starts.to(DEVICE),
        context_lengths=batch.context_lengths.to(DEVICE),
        prefixes=as_prefixes(numbers, len(case.contexts)),
    )
    found = paged_attention(
        queries.to(DEVICE),
        cache,
        moved,
        scale=0.25,
        sinks=sinks.to(DEVICE),
        processors=PROCESSORS,
        tiling=tiling,
        shared_tiling=shared,
        **{"window": None, "softcap": None, **options},  # type: ignore[arg-type]
    )
    same(found, expected)


@settings(max_examples=8)
@given(
    sharing(most=4, longest=70),
    st.sampled_from([(4, 2), (7, 1), (2, 2)]),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2]),
    st.none() | st.just(2.5),
    st.tuples(st.sampled_from(list(TOLERANCE)), st.sampled_from([None, torch.float8_e4m3fn])),
    st.sampled_from([16, 64, 80, 96, 128, 256]),
)
def test_shared_prefixes_change_no_result(
    case: Sharing,
    heads: tuple[int, int],
    splits: int,
    shared: int,
    softcap: float | None,
    dtypes: tuple[torch.dtype, torch.dtype | None],
    dim: int,
) -> None:
    tilings = Tiling(16, 16, splits, 4, 2), Tiling(16, 16, shared, 4, 2)
    attend_as_the_reference(case, heads, BLOCK_SIZE, *tilings, dtypes, dim, softcap=softcap)


def test_groups_of_several_tiles_beside_prompts_and_with_the_tilings_that_are_chosen() -> None:
    likes = [(0, 0), (0, 2), (0, 0), (0, 0), (0, 2), (0, 0), (5, 1), (0, 1), (0, 0)]
    many = Sharing([40, 33, 20, 9, 49, 18, 35, 20, 9], [1, 1, 1, 1, 1, 1, 1, 3, 1], likes)
    assert sorted(len(group.sequences) for group in many.groups(BLOCK_SIZE)) == [2, 3]
    attend_as_the_reference(many, (8, 1), shared=Tiling(16, 16, 1, 4, 2))
    attend_as_the_reference(many, (8, 1))


def test_layers_with_a_window_do_without() -> None:
    attend_as_the_reference(Sharing([40, 50], [1, 1], [(0, 0), (0, 2)]), window=20)


@pytest.mark.parametrize("sequences", [2, 32, 256])
def test_groups_fill_the_processors_with_tiles_of_one_size(sequences: int) -> None:
    batch = ragged([700] * sequences, [1] * sequences)
    queries = torch.empty(sequences, 32, 128, dtype=torch.bfloat16)
    tiling = choose_shared_tiling(batch, queries, 8, Processors(132, 232_448))
    assert tiling.rows == 128
    tiles = -(-sequences // 32)
    assert tiling.splits == max(1, min(11, 132 // (8 * tiles)))
