"""Every Triton kernel computes what its plain torch reference does: on a GPU, or in Triton's interpreter without one.

The interpreter takes milliseconds for each program of a kernel, so that shapes are small, and tiles too: all that
happens between tiles and parts of long contexts happens here within a few dozen tokens.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, CacheSpec, HeadNorms, LayerCache
from headwater_engine.quantization.stored import StoredWeight
from tests.engine.batches import ragged, random, views

pytest.importorskip("triton", reason="torch for CPUs comes without Triton")

from headwater_engine.kernels.gpu import TritonKernels
from headwater_engine.kernels.triton.tiling import Processors, Tiling, choose_tiling
from tests.engine.triton_case import DEVICE, TOLERANCE, Case, kernels_of, same

REAL_DIMS = [64, 80, 96, 128, 256]
dtypes = st.sampled_from(list(TOLERANCE))
kv_dtypes = st.sampled_from([None, torch.float8_e4m3fn])


def rows_of(cache: LayerCache, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a TritonKernels' cache, [slots, kv heads, dim]."""
    block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    return cache.keys[block, :, offset], cache.values[block, :, offset]


@st.composite
def cases(draw: st.DrawFn, dim: int | None = None) -> Case:
    contexts = draw(st.lists(st.integers(1, 50), min_size=1, max_size=3))
    new = [draw(st.one_of(st.just(1), st.integers(1, min(context, 9)))) for context in contexts]
    group, kv_heads = draw(st.integers(1, 16)), draw(st.sampled_from([1, 2]))
    dim = dim or draw(st.sampled_from([16, 20, *REAL_DIMS]))
    return Case(contexts, new, group, kv_heads, dim, draw(dtypes), draw(kv_dtypes))


tilings = st.builds(
    Tiling,
    rows=st.sampled_from([16, 32]),
    keys=st.sampled_from([16, 32]),
    splits=st.sampled_from([1, 2, 3]),
    warps=st.just(4),
    stages=st.just(2),
)


@settings(max_examples=10)
@given(case=cases(), tiling=tilings)
def test_attention_of_odd_batches(case: Case, tiling: Tiling) -> None:
    case.run(tiling)


@pytest.mark.parametrize("dim", REAL_DIMS)
@settings(max_examples=5)
@given(
    data=st.data(),
    tiling=tilings,
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.just(2.5),
    sinks=st.booleans(),
)
def test_attention_options(
    dim: int, data: st.DataObject, tiling: Tiling, window: int | None, softcap: float | None, sinks: bool
) -> None:
    data.draw(cases(dim)).run(tiling, window=window, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("kv_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", REAL_DIMS)
def test_attention_of_every_type(dim: int, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> None:
    """With groups of 7, and all options at once."""
    case = Case([37, 20], [1, 3], 7, 1, dim, dtype, kv_dtype)
    case.run(Tiling(16, 16, 2, 4, 2), window=19, softcap=2.5, sinks=True)


@pytest.mark.parametrize("dim", REAL_DIMS)
@pytest.mark.parametrize("group", [1, 7, 16])
def test_every_head_size_with_the_tiling_that_is_chosen(dim: int, group: int) -> None:
    for new in ([1, 1], [1, 3]):
        Case([70, 5], new, group, 1, dim, torch.float16).run(None)


def test_a_prompt_among_tokens_that_decode() -> None:
    Case([9, 40, 17, 1], [1, 40, 1, 1], 4, 2, 16, torch.float32).run(Tiling(16, 16, 2, 4, 2))


def test_sequences_may_have_no_query() -> None:
    """As in a model's last layer, where prompts that go on want no logits."""
    ours, theirs = kernels_of(torch.float32)
    batch = ragged([20, 9, 33], [20, 1, 5])
    rows = torch.tensor([20, 25])
    queries, keys, values = views(theirs, 26, 4, 2, 16)
    reference, cache = (each.allocate(12, CacheSpec(2, 16, 16)) for each in (theirs, ours))
    theirs.write_cache(keys, values, reference, batch.slots)
    for target, source in zip(cache[:2], (keys, values), strict=True):
        target[batch.slots // BLOCK_SIZE, :, batch.slots % BLOCK_SIZE] = source.to(DEVICE)
    expected = theirs.paged_attention(queries[rows], reference, batch.only(rows), scale=0.25)
    fewer = ragged([20, 9, 33], [20, 1, 5], DEVICE).only(rows.to(DEVICE))
    same(ours.paged_attention(queries[rows].to(DEVICE), cache, fewer, scale=0.25), expected)
    none = ragged([20, 9, 33], [20, 1, 5], DEVICE).only(rows[:0].to(DEVICE))
    assert ours.paged_attention(queries[:0].to(DEVICE), cache, none, scale=0.25).shape == (0, 4, 16)


def test_contexts_are_cut_only_where_processors_would_idle() -> None:
    def splits(sequences: int, context: int) -> int:
        batch = ragged([context] * sequences, [1] * sequences)
        queries = torch.empty(sequences, 32, 128, dtype=torch.bfloat16)
        return choose_tiling(batch, queries, 8, Processors(132, 232_448)).splits

    assert splits(1, 30) == 1
    assert 1 < splits(1, 1024) <= splits(1, 8192)
    assert splits(64, 1024) == splits(256, 1024) == 1
    fewer = [splits(sequences, 4096) for sequences in (1, 4, 16, 64)]
    assert fewer == sorted(fewer, reverse=True)


@pytest.mark.parametrize("shared_memory", [101_376, 166_912, 232_448], ids=["L4", "A100", "H100"])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("new", [1, 500])
def test_a_programs_tiles_fit_into_its_memory(shared_memory: int, dim: int, dtype: torch.dtype, new: int) -> None:
    batch, queries = ragged([700], [new]), torch.empty(new, 32, dim, dtype=dtype)
    tiling = choose_tiling(batch, queries, 8, Processors(100, shared_memory))
    row = 2 ** (dim - 1).bit_length() * dtype.itemsize
    # The queries, keys and values; of prompts, whose products run beside the loop, the keys and values to come as well.
    assert tiling.rows * row + (2 if new == 1 else 4) * tiling.keys * row <= shared_memory


@settings(max_examples=15)
@given(
    dtype=dtypes,
    kv_dtype=kv_dtypes,
    tokens=st.integers(0, 3),
    kv_heads=st.sampled_from([1, 2, 5]),
    group=st.sampled_from([1, 3, 7]),
    dim=st.sampled_from([16, 20, 24, *REAL_DIMS]),
    rotated=st.sampled_from([1.0, 0.5]),
    normed=st.booleans(),
)
def test_placing(
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None,
    tokens: int,
    kv_heads: int,
    group: int,
    dim: int,
    rotated: float,
    normed: bool,
) -> None:
    """Norms of heads, rotation, and writing to the cache."""
    angles = random(64, int(dim * rotated) // 2, seed=4)
    batch = ragged([40], [tokens])
    results = []
    for kernels in kernels_of(dtype, kv_dtype):
        device = kernels.device
        queries, keys, values = views(kernels, tokens, kv_heads * group, kv_heads, dim)
        cache = kernels.allocate(7, CacheSpec(kv_heads, dim, dim))
        weights = (random(dim, seed=seed).to(device, dtype) for seed in (5, 6))
        norms = HeadNorms(*weights, eps=1e-5) if normed else None
        of_device = ragged([40], [tokens], device)
        placed = kernels.place(
            queries, keys, values, angles.cos().to(device), angles.sin().to(device), cache, of_device, norms
        )
        results.append((placed, cache))
    (ours, our_cache), (theirs, their_cache) = results
    same(ours, theirs)
    written = [cache.flatten(0, 1)[batch.slots] for cache in their_cache[:2]]
    for our_rows, their_rows in zip(rows_of(our_cache, batch.slots.to(DEVICE)), written, strict=True):
        same(our_rows, their_rows)
    assert our_cache.keys.float().count_nonzero() <= tokens * kv_heads * dim, "no other row was written"


@settings(max_examples=10)
@given(
    dtype=dtypes,
    kv_dtype=kv_dtypes,
    tokens=st.integers(0, 3),
    kv_heads=st.sampled_from([1, 5]),
    dims=st.sampled_from([(8, 8), (24, 16), (80, 80), (256, 96)]),
)
def test_writing_the_cache(
    dtype: torch.dtype, kv_dtype: torch.dtype | None, tokens: int, kv_heads: int, dims: tuple[int, int]
) -> None:
    ours = TritonKernels(dtype, DEVICE, kv_dtype)
    slots = torch.tensor([3, 40, 17])[:tokens].to(DEVICE)
    keys, values = (random(tokens, kv_heads, dim).to(DEVICE, dtype) for dim in dims)
    cache = ours.allocate(3, CacheSpec(kv_heads, *dims))
    ours.write_cache(keys, values, cache, slots)
    written = rows_of(cache, slots)
    assert torch.equal(written[0].float(), keys.to(kv_dtype or dtype).float())
    assert torch.equal(written[1].float(), values.to(kv_dtype or dtype).float())
    assert cache.values.float().count_nonzero() <= values.numel()


@settings(max_examples=15)
@given(dtype=dtypes, rows=st.integers(0, 3), size=st.integers(1, 600))
def test_norms(dtype: torch.dtype, rows: int, size: int) -> None:
    ours, theirs = kernels_of(dtype)
    x, residual, weight = random(rows, size), random(rows, size, seed=1), random(size, seed=2)
    x, residual, weight = x.to(dtype), residual.to(dtype), weight.to(dtype)
    same(ours.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5), theirs.rms_norm(x, weight, 1e-5))
    kept = residual.to(DEVICE, copy=True)
    same(ours.add_rms_norm(x.to(DEVICE), kept, weight.to(DEVICE), 1e-5), theirs.add_rms_norm(x, residual, weight, 1e-5))
    same(kept, residual)


def test_norms_of_heads_that_are_views() -> None:
    ours, theirs = kernels_of(torch.float32)
    _, keys, _ = views(theirs, 3, 6, 2, 24)
    weight = random(24, seed=3)
    spread = random(3, 240).to(DEVICE)
    ours_keys = spread.view(3, 10, 24)[:, 6:8]
    ours_keys.copy_(keys)
    same(ours.rms_norm(ours_keys, weight.to(DEVICE), 1e-6), theirs.rms_norm(keys, weight, 1e-6))


@settings(max_examples=10)
@given(dtype=dtypes, rows=st.integers(0, 2), size=st.integers(1, 1200))
def test_activation(dtype: torch.dtype, rows: int, size: int) -> None:
    ours, theirs = kernels_of(dtype)
    gate_up = (20 * random(rows, 2 * size)).to(dtype)
    same(ours.silu_mul(gate_up.to(DEVICE)), theirs.silu_mul(gate_up))


@settings(max_examples=10)
@given(
    dtype=dtypes,
    tokens=st.lists(st.integers(0, 29), max_size=4),
    size=st.sampled_from([8, 20, 1030]),
    first=st.none() | st.integers(0, 40),
)
def test_vectors_of_tokens_of_a_part_of_the_vocabulary(
    dtype: torch.dtype, tokens: list[int], size: int, first: int | None
) -> None:
    table = random(30 if first is None else 11, size).to(dtype)
    table[0] = torch.inf  # which a token that is not here does not get
    rows = [token - (first or 0) for token in tokens]
    none = torch.zeros(size, dtype=dtype)
    expected = torch.stack([none, *(table[row] if 0 <= row < len(table) else none for row in rows)])[1:]
    for kernels in kernels_of(dtype):
        found = kernels.lookup(table.to(kernels.device))(torch.tensor(tokens, device=kernels.device).long(), first)
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_products(wide: bool, biased: bool) -> None:
    ours, theirs = kernels_of(torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
    parts, x = [StoredWeight(random(40, 24, seed=1))], random(5, 24).to(ours.dtype)
    bias = random(40, seed=2) if biased else None
    found = ours.linear(parts, bias, wide=wide)(x.to(DEVICE))
    assert found.dtype == (torch.float32 if wide else ours.dtype)
    torch.testing.assert_close(found.cpu(), theirs.linear(parts, bias, wide=wide)(x), **TOLERANCE[ours.dtype])
