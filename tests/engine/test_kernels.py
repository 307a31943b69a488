"""Every C++ kernel computes what its plain torch reference does; and what only the C++ ones promise."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import CacheSpec, HeadNorms, Kernels
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.quantization.stored import StoredWeight
from tests.engine.batches import attend, ragged, random, views

FLOAT = CppKernels(torch.float32, Products.FLOAT32)
MIXED = CppKernels(torch.bfloat16, Products.FLOAT32)
"""bfloat16 weights and KV, float32 activations: what CPUs without bfloat16 arithmetic get."""
HALF = CppKernels(torch.bfloat16, Products.BFLOAT16)
"""bfloat16 activations, too: what CPUs with it get. Only products are slow where it is emulated."""
MANY = 256 * torch.get_num_threads() + 3
"""Rows enough for each thread to take some of them, and all of a weight."""


@pytest.mark.parametrize("dim", [8, 20, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (8, 1)])
def test_attention_of_ragged_batches(dim: int, heads: int, kv_heads: int) -> None:
    shape = ([1, 17, 300, 45, 16, 200], [1, 17, 1, 20, 1, 33], heads, kv_heads, dim)
    torch.testing.assert_close(attend(FLOAT, *shape), attend(TorchKernels(), *shape), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attend(MIXED, *shape), attend(TorchKernels(), *shape), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dim", [8, 21, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (8, 1)])
def test_attention_with_bfloat16_activations(dim: int, heads: int, kv_heads: int) -> None:
    shape = ([1, 17, 300, 45, 16, 200], [1, 17, 1, 20, 1, 33], heads, kv_heads, dim)
    expected = attend(TorchKernels(torch.bfloat16), *shape)
    torch.testing.assert_close(attend(HALF, *shape), expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("kernels", [FLOAT, MIXED, HALF], ids=["float32", "mixed", "bfloat16"])
def test_what_a_block_held_before_does_not_matter(kernels: CppKernels) -> None:
    """Not even where the values of two tokens are multiplied at once, and the second is still to come."""
    batch = ragged([21, 7], [21, 7])
    _, keys, values = views(kernels, 28, 6, 2, 64)
    queries, _, _ = views(kernels, 28, 6, 2, 64)
    results = []
    for before in (0.0, torch.nan):
        cache = kernels.allocate(20, CacheSpec(2, 64, 64))
        cache.keys.fill_(before)
        cache.values.fill_(before)
        kernels.write_cache(keys, values, cache, batch.slots)
        results.append(kernels.paged_attention(queries, cache, batch, scale=0.125))
    assert torch.equal(*results)
    assert results[0].isfinite().all()


@pytest.mark.parametrize("kernels", [FLOAT, MIXED, HALF], ids=["float32", "mixed", "bfloat16"])
def test_tokens_written_one_by_one_or_together_are_the_same(kernels: CppKernels) -> None:
    batch = ragged([37], [37])
    _, keys, values = views(kernels, 37, 6, 2, 20)
    together, alone = (kernels.allocate(12, CacheSpec(2, 20, 20)) for _ in range(2))
    kernels.write_cache(keys, values, together, batch.slots)
    for start, end in ((0, 1), (1, 2), (2, 5), (5, 6), (6, 37)):
        kernels.write_cache(keys[start:end], values[start:end], alone, batch.slots[start:end])
    assert torch.equal(together.keys, alone.keys)
    assert torch.equal(together.values, alone.values)


@pytest.mark.parametrize("kernels", [FLOAT, MIXED, HALF], ids=["float32", "mixed", "bfloat16"])
def test_fewer_queries_attend_as_they_do_among_all(kernels: CppKernels) -> None:
    """Those of the last tokens, as a model's last layer asks for; a sequence may have none."""
    batch = ragged([40, 9, 300], [40, 1, 33])
    queries, keys, values = views(kernels, 74, 6, 2, 64)
    cache = kernels.allocate(40, CacheSpec(2, 64, 64))
    kernels.write_cache(keys, values, cache, batch.slots)
    whole = kernels.paged_attention(queries, cache, batch, scale=0.125)
    for wanted in ([39, 40, 73], [73], [40], []):
        rows = torch.tensor(wanted, dtype=torch.long)
        fewer = kernels.paged_attention(queries[rows], cache, batch.only(rows), scale=0.125)
        torch.testing.assert_close(fewer, whole[rows], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"window": 5}, {"window": 100}, {"softcap": 3.0}, {"sinks": random(9)}, {"window": 40, "softcap": 2.0}],
    ids=str,
)
def test_attention_options(options: dict[str, object]) -> None:
    shape = ([3, 70, 260, 129], [3, 1, 30, 129], 9, 3, 32)
    torch.testing.assert_close(
        attend(FLOAT, *shape, **options), attend(TorchKernels(), *shape, **options), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("slope", [-0.3, 0.01, 0.04, 0.3])
@pytest.mark.parametrize(
    ("kernels", "tolerance"), [(FLOAT, 1e-4), (MIXED, 2e-2), (HALF, 3e-2)], ids=["float32", "mixed", "bfloat16"]
)
def test_later_keys_may_count_for_more_than_all_before(kernels: CppKernels, tolerance: float, slope: float) -> None:
    """`slope`: how much more each score is than the one before: the largest so far is outdone, a little or by far."""
    batch, whole = ragged([900, 700], [40, 1]), ragged([900, 700], [900, 700])
    cache_type = kernels.allocate(1, CacheSpec(2, 64, 64)).keys.dtype
    results = []
    for each in (kernels, TorchKernels(kernels.dtype, kv_dtype=cache_type)):
        queries, _, _ = views(each, 41, 6, 2, 64)
        _, keys, values = views(each, 1600, 6, 2, 64)
        queries[:, :, 0], keys[:, :, 0] = 8, (whole.positions.float() * slope).to(each.dtype).unsqueeze(1)
        cache = each.allocate(120, CacheSpec(2, 64, 64))
        each.write_cache(keys, values, cache, whole.slots)
        results.append(each.paged_attention(queries, cache, batch, scale=0.125))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_a_long_context_is_cut_and_put_together() -> None:
    shape = ([5000, 2100, 7], [1, 1, 1], 9, 3, 64)
    torch.testing.assert_close(attend(FLOAT, *shape), attend(TorchKernels(), *shape), rtol=1e-4, atol=1e-5)
    sinks = random(9)
    torch.testing.assert_close(
        attend(FLOAT, *shape, sinks=sinks), attend(TorchKernels(), *shape, sinks=sinks), rtol=1e-4, atol=1e-5
    )


@settings(max_examples=100)
@given(
    rows=st.integers(0, 70),
    inputs=st.integers(1, 90) | st.sampled_from([32, 64, 320]),  # whole tiles of AMX
    outputs=st.integers(1, 90),
    biased=st.booleans(),
)
def test_products(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    x, weight = random(rows, inputs), random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2) if biased else None
    expected = TorchKernels().linear([StoredWeight(weight)], bias)(x)
    torch.testing.assert_close(FLOAT.linear([StoredWeight(weight)], bias)(x), expected, rtol=1e-4, atol=1e-4)
    # bfloat16 weights are widened exactly: the result is that of float32 arithmetic on the rounded weights.
    rounded = weight.to(torch.bfloat16)
    expected = TorchKernels().linear([StoredWeight(rounded.float())], bias)(x)
    torch.testing.assert_close(MIXED.linear([StoredWeight(rounded)], bias)(x), expected, rtol=1e-4, atol=1e-4)
    # Where activations are bfloat16 as well, the sums are still float32, and only the result is rounded.
    expected = TorchKernels().linear([StoredWeight(rounded.float())], bias)(x.bfloat16().float())
    half = HALF.linear([StoredWeight(rounded)], bias)
    torch.testing.assert_close(half(x.bfloat16()), expected.bfloat16(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kernels", [FLOAT, MIXED, HALF, TorchKernels()], ids=["float32", "mixed", "bfloat16", "torch"])
@pytest.mark.parametrize(("rows", "size"), [(16, 8), (37, 33), (200, 64)])
def test_a_tied_table_is_looked_up_and_multiplied_with_from_one_copy(kernels: Kernels, rows: int, size: int) -> None:
    table, tokens, x = random(rows, size).bfloat16(), torch.tensor([rows - 1, 0, 15, 3, 15]), random(4, size, seed=1)
    look_up, product = kernels.tied(StoredWeight(table))
    found = look_up(tokens)
    assert found.dtype == kernels.dtype
    assert torch.equal(found.float(), table[tokens].float())
    x = x.to(kernels.dtype)
    assert torch.equal(product(x), kernels.linear([StoredWeight(table)], wide=True)(x))
    for absent in (rows, -1):
        with pytest.raises(IndexError):
            look_up(torch.tensor([0, absent]))


@pytest.mark.parametrize("inputs", [300, 320])
@pytest.mark.parametrize("kernels", [FLOAT, MIXED, HALF], ids=["float32", "mixed", "bfloat16"])
def test_a_row_of_a_product_does_not_depend_on_its_batch(kernels: CppKernels, inputs: int) -> None:
    """To the last bit, so that an answer is the same alone and among others."""
    linear = kernels.linear([StoredWeight(random(200, inputs, seed=1))])
    x = random(MANY, inputs).to(kernels.dtype)
    whole = linear(x)
    for rows in (*range(1, 11), 16, 17, 20, 32, 33, 64):
        assert torch.equal(linear(x[:rows]), whole[:rows])
    assert torch.equal(torch.cat([linear(few) for few in x.split(40)]), whole)


@pytest.mark.parametrize("kernels", [FLOAT, HALF], ids=["float32", "bfloat16"])
def test_what_lies_behind_a_row_does_not_matter(kernels: CppKernels) -> None:
    """Not even where an odd number of inputs is read in pairs."""
    wide = random(7, 50).to(kernels.dtype)
    wide[:, 29:] = torch.nan
    linear = kernels.linear([StoredWeight(random(20, 29, seed=1))])
    assert torch.equal(linear(wide[:, :29]), linear(wide[:, :29].contiguous()))
    assert linear(wide[:, :29]).isfinite().all()


@pytest.mark.parametrize("rows", [7, MANY])
def test_products_take_rows_that_lie_apart(rows: int) -> None:
    wide = random(rows, 50)
    linear = FLOAT.linear([StoredWeight(random(20, 30, seed=1))])
    torch.testing.assert_close(linear(wide[:, :30]), linear(wide[:, :30].contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("kernels", [FLOAT, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [0, 1, 5, 300])
def test_norms(kernels: CppKernels, rows: int) -> None:
    reference = TorchKernels(kernels.dtype)
    x, residual = random(rows, 144).to(kernels.dtype), random(rows, 144, seed=1).to(kernels.dtype)
    weight = random(144, seed=2).to(kernels.dtype)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if kernels is HALF else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **tolerance)
    ours, theirs = residual.clone(), residual.clone()
    torch.testing.assert_close(
        kernels.add_rms_norm(x, ours, weight, 1e-5), reference.add_rms_norm(x, theirs, weight, 1e-5), **tolerance
    )
    torch.testing.assert_close(ours, theirs, **tolerance)


def test_norms_of_heads_that_are_views() -> None:
    queries, keys, _ = views(FLOAT, 11, 6, 2, 24)
    weight = random(24, seed=3)
    for x in (queries, keys):
        torch.testing.assert_close(FLOAT.rms_norm(x, weight, 1e-6), TorchKernels().rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("kernels", [FLOAT, MIXED, HALF], ids=["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize("rotary", [32, 20])
@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_normed_and_rotated_in_place_and_kept(kernels: CppKernels, rotary: int, normed: bool) -> None:
    """Of more tokens than one thread takes at a time."""
    batch = ragged([20, 45, 7], [1, 40, 3])
    angles = random(64, rotary // 2)
    weights = (random(32).to(kernels.dtype), random(32).to(kernels.dtype))
    norms = HeadNorms(*weights, eps=1e-5) if normed else None
    placed = []
    for each in (kernels, TorchKernels(kernels.dtype)):
        queries, keys, values = views(kernels, 44, 4, 2, 32)
        cache = each.allocate(20, CacheSpec(2, 32, 32))
        queries = each.place(queries, keys, values, angles.cos(), angles.sin(), cache, batch, norms)
        attended = each.paged_attention(queries, cache, batch, scale=0.2)
        placed.append((queries, attended))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if kernels is not FLOAT else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(*placed, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("kernels", [FLOAT, HALF], ids=["float32", "bfloat16"])
def test_activation(kernels: CppKernels) -> None:
    gate_up = (20 * random(9, 2 * 37)).to(kernels.dtype)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if kernels is HALF else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(kernels.silu_mul(gate_up), TorchKernels(kernels.dtype).silu_mul(gate_up), **tolerance)


@pytest.mark.parametrize("kernels", [FLOAT, MIXED, HALF], ids=["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 48), (96, 37), (21, 48)])
@pytest.mark.parametrize("biased", [False, True])
def test_gated_products(kernels: CppKernels, inputs: int, outputs: int, biased: bool) -> None:
    """The same of any row, whatever the number of others: beside few and many, each share of the work is another."""
    gate, up = (StoredWeight(random(outputs, inputs).bfloat16() / 4) for _ in range(2))
    bias = random(2 * outputs) if biased else None
    ours = kernels.gated(gate, up, bias)
    x = random(MANY, inputs).bfloat16().to(kernels.dtype)
    expected = TorchKernels().gated(gate, up, bias)(x.float())
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if kernels is HALF else {"rtol": 1e-4, "atol": 1e-4}
    found = ours(x)
    torch.testing.assert_close(found.float(), expected, **tolerance)
    for rows in (1, 16, 17, 33, 100):
        assert torch.equal(ours(x[:rows]), found[:rows])


def test_wrong_shapes_are_errors_and_no_crashes() -> None:
    linear = FLOAT.linear([StoredWeight(random(20, 30))])
    with pytest.raises(RuntimeError, match="x must be"):
        linear(random(3, 31))
    with pytest.raises(RuntimeError, match="gate_up"):
        FLOAT.silu_mul(random(3, 5))
    with pytest.raises(RuntimeError, match="another shape"):
        FLOAT.write_cache(random(1, 2, 8), random(1, 2, 8), FLOAT.allocate(2, CacheSpec(3, 8, 8)), torch.tensor([0]))


def test_plain_torch_takes_over_where_nothing_compiles(tmp_path: os.PathLike[str]) -> None:
    code = "import torch; from headwater_engine.kernels import select; print(select(torch.bfloat16).name)"
    environment = os.environ | {"CXX": "/bin/false", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1].startswith("cpu-torch: /bin/false ended with status 1")
    assert "plain torch takes over" in run.stdout + run.stderr
