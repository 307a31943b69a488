"""Attention at the sizes of real models, as it is compiled for a GPU. Small and odd ones: test_triton_kernels.py."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from headwater_engine.kernels.interface import CacheSpec
from tests.engine.triton_case import Case

DECODE = ([1, 17, 5000, 900, 2048], [1] * 5)
PROMPTS = ([700, 300, 5000, 64], [700, 1, 130, 64])
"""A whole prompt, one that decodes, a chunk behind a long context, and a short prompt."""


@pytest.mark.parametrize("batch", [DECODE, PROMPTS], ids=["decode", "prompts"])
@pytest.mark.parametrize(
    ("dim", "group", "dtype"),
    [
        (128, 4, torch.bfloat16),
        (128, 7, torch.float16),
        (64, 3, torch.bfloat16),
        (80, 1, torch.float16),
        (96, 8, torch.bfloat16),
        (256, 2, torch.bfloat16),
        (128, 16, torch.bfloat16),
        (64, 2, torch.float32),
    ],
)
def test_it_is_the_reference(batch: tuple[list[int], list[int]], dim: int, group: int, dtype: torch.dtype) -> None:
    Case(*batch, group=group, kv_heads=2, dim=dim, dtype=dtype).run(None)


@pytest.mark.parametrize("batch", [DECODE, PROMPTS], ids=["decode", "prompts"])
@pytest.mark.parametrize(
    "options", [{"window": 100}, {"window": 1024, "sinks": True}, {"softcap": 3.0, "sinks": True}], ids=str
)
def test_options(batch: tuple[list[int], list[int]], options: dict[str, float]) -> None:
    Case(*batch, group=4, kv_heads=2, dim=64, dtype=torch.float16).run(None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [DECODE, PROMPTS], ids=["decode", "prompts"])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_keys_and_values_in_8_bits(batch: tuple[list[int], list[int]], dim: int) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no numbers of 8 bits")
    Case(*batch, group=4, kv_heads=2, dim=dim, dtype=torch.bfloat16, kv_dtype=torch.float8_e4m3fn).run(None)


def test_a_recorded_launch_stays_right_while_contexts_grow() -> None:
    """The parts of a context are cut on the GPU: what a CUDA graph replays depends on the sizes of the batch alone."""
    from headwater_engine.kernels.gpu import TritonKernels
    from tests.engine.batches import ragged, random

    kernels = TritonKernels(torch.bfloat16, torch.device("cuda"))
    cache = kernels.allocate(320, CacheSpec(2, 128, 128))
    for tensor in cache[:2]:
        tensor.copy_(random(*tensor.shape))
    batch = ragged([4000, 700], [1, 1], kernels.device)
    queries = random(2, 8, 128).to(kernels.device, kernels.dtype)
    attend = lambda: kernels.paged_attention(queries, cache, batch, scale=0.09)  # noqa: E731
    attend()
    graph = torch.cuda.CUDAGraph()
    batch.context_lengths.copy_(torch.tensor([1000, 3]))
    with torch.cuda.graph(graph):
        recorded = attend()
    for lengths in ([1000, 3], [3999, 600], [17, 17]):
        batch.context_lengths.copy_(torch.tensor(lengths))
        graph.replay()
        torch.testing.assert_close(recorded, attend())


def test_recorded_launches_take_whatever_groups_they_are_told() -> None:
    """Of contexts that all begin alike, in one recording: none, all, or some that share less."""
    from dataclasses import replace

    from headwater_engine.kernels.gpu import TritonKernels
    from headwater_engine.kernels.prefixes import Group, as_numbers, as_prefixes
    from tests.engine.batches import ragged, random

    kernels, contexts = TritonKernels(torch.bfloat16, torch.device("cuda")), [1500 + 37 * n for n in range(40)]
    alone = ragged(contexts, [1] * 40, kernels.device)
    alone.block_tables[:, :90] = alone.block_tables[0, :90].clone()
    cache = kernels.allocate(int(alone.block_tables.max()) + 1, CacheSpec(2, 128, 128))
    for tensor in cache[:2]:
        tensor.copy_(random(*tensor.shape))
    queries = random(40, 8, 128).to(kernels.device, kernels.dtype)
    expected = kernels.paged_attention(queries, cache, alone, scale=0.09)
    numbers = torch.from_numpy(as_numbers([], 40)).to(kernels.device)
    batch = replace(alone, prefixes=as_prefixes(numbers, 40), plans={})
    attend = lambda: kernels.paged_attention(queries, cache, batch, scale=0.09)  # noqa: E731
    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = attend()
    pairs = [Group([2 * n, 2 * n + 1], 90 - n) for n in range(8)]
    for groups in ([], [Group(list(range(40)), 90)], pairs, [Group([39, 3], 1), Group(list(range(4, 38)), 64)]):
        numbers.copy_(torch.from_numpy(as_numbers(groups, 40)))
        graph.replay()
        torch.testing.assert_close(recorded, expected, rtol=2e-2, atol=2e-2)
