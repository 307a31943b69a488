"""Keys and values may be kept in fewer bits than the rest (`--kv-cache-dtype`): all kernels round them alike."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from headwater import backends
from headwater.backends.base import UnsupportedError
from headwater.pick.capabilities import CAPABILITIES
from headwater.pick.hardware import ACCELERATORS, Accelerator
from headwater.resource import API_VERSION, KIND, Cache, ModelDeployment
from headwater_engine.config import EngineSettings
from headwater_engine.errors import LoadError
from headwater_engine.kernels import CPU, KV_DTYPES, select
from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import (
    BLOCK_SIZE,
    AttentionBatch,
    AttentionRules,
    CacheSpec,
    Kernels,
    RotaryTable,
)
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.worker.loading import load
from tests.engine.batches import attend, ragged, random, views

FP8 = torch.float8_e4m3fn


def test_numbers_that_8_bits_do_not_reach_become_the_largest_and_what_is_none_stays_none() -> None:
    kernels = TorchKernels(kv_dtype=FP8)
    cache = kernels.allocate(1, CacheSpec(1, 4, 4))
    numbers = torch.tensor([1e9, -460.0, torch.nan, 1.07]).view(1, 1, 4)
    kernels.write_cache(numbers, numbers, cache, torch.tensor([5]))
    torch.testing.assert_close(
        cache.keys.float()[0, 5, 0], torch.tensor([448.0, -448.0, torch.nan, 1.125]), equal_nan=True
    )


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, FP8])
def test_attention_differs_by_the_rounding_of_keys_and_values_only(kv_dtype: torch.dtype) -> None:
    exact, rounded = (
        attend(kernels, [70, 33], [5, 1], 4, 2, 16) for kernels in (TorchKernels(), TorchKernels(kv_dtype=kv_dtype))
    )
    error = (exact - rounded).norm() / exact.norm()
    assert torch.finfo(kv_dtype).eps / 16 < error < torch.finfo(kv_dtype).eps


def test_the_cpp_kernels_keep_bfloat16_beside_float32_weights() -> None:
    ours, theirs = (
        CppKernels(torch.float32, Products.FLOAT32, torch.bfloat16),
        TorchKernels(kv_dtype=torch.bfloat16),
    )
    arguments = ([70, 33], [5, 1], 4, 2, 16)
    torch.testing.assert_close(attend(ours, *arguments), attend(theirs, *arguments), rtol=1e-4, atol=1e-5)
    assert 2 * ours.bytes_per_block(CacheSpec(2, 16, 16)) == TorchKernels().bytes_per_block(CacheSpec(2, 16, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bits_are_refused_on_a_cpu_but_by_plain_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="--kv-cache-dtype fp8: on a CPU, keys and values are bfloat16 or float32"):
        select(dtype, CPU, "fp8")
    monkeypatch.setenv("HEADWATER_KERNELS", "torch")
    spec = CacheSpec(2, 16, 16)
    assert select(dtype, CPU, "fp8").bytes_per_block(spec) == 16 * 2 * (16 + 16)
    assert select(dtype, CPU, "fp8").allocate(1, spec).keys.dtype == FP8


def test_a_gpu_without_such_numbers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(LoadError, match="--kv-cache-dtype fp8: NVIDIA A100 has no numbers of 8 bits"):
        select(torch.bfloat16, torch.device("cuda", 0), "fp8")


CAPABILITY = {"turing": (7, 5), "ampere": (8, 0), "ada": (8, 9), "hopper": (9, 0), "blackwell": (10, 0)}
"""Compute capability of each generation of NVIDIA's GPUs; of Ampere's the least."""


def test_whoever_names_types_of_kv_names_those_of_the_engine() -> None:
    """A resource knows more of them than our engine, which says so."""
    assert set(get_args(EngineSettings.model_fields["kv_cache_dtype"].annotation)) == KV_DTYPES.keys()
    for dtype in get_args(Cache.model_fields["dtype"].annotation):
        spec = {"model": {"source": "random:tiny"}, "cache": {"dtype": dtype}}
        resource = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "m"}, "spec": spec}
        refused = nullcontext() if dtype in KV_DTYPES else pytest.raises(UnsupportedError)
        with refused:
            backends.get("headwater").command(ModelDeployment.model_validate(resource), port=1)


@pytest.mark.parametrize(
    "gpu", [each for each in ACCELERATORS.values() if each.vendor in ("nvidia", "cpu")], ids=lambda x: x.name
)
def test_pick_knows_where_8_bits_are_kept(gpu: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CPU
    if gpu.vendor == "nvidia":
        pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
        device = torch.device("cuda", 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CAPABILITY[str(gpu.generation)])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu.title)
        properties = SimpleNamespace(multi_processor_count=1, shared_memory_per_block_optin=1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    ours = next(each for each in CAPABILITIES if each.backend == "headwater")
    with nullcontext() if ours.keeps_fp8(gpu) else pytest.raises(LoadError, match="--kv-cache-dtype fp8"):
        select(torch.bfloat16, device, "fp8")


def test_the_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks(choice: str) -> int:
        settings = EngineSettings(
            model="random:tiny", device="cpu", kv_cache_gib=0.001, max_num_seqs=64, kv_cache_dtype=choice
        )
        return load(settings, lambda fraction, phase: None, lambda: None).blocks

    with pytest.raises(LoadError, match="fp8"):
        blocks("fp8")
    monkeypatch.setenv("HEADWATER_KERNELS", "torch")
    assert blocks("fp8") == 2 * blocks("bfloat16")


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("kv_dtype", "tokens", "heads"), [(torch.bfloat16, 1, 4), (FP8, 1, 7), (FP8, 3, 4)])
def test_triton_writes_and_reads_what_the_reference_does(
    kv_dtype: torch.dtype, tokens: int, heads: int, rotated: bool
) -> None:
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    from headwater_engine.kernels.gpu import TritonKernels
    from tests.engine.triton_case import DEVICE

    quarters = (random(64, 10) > 0).float()
    before, written, results = 40 - tokens, [], []
    kinds: list[Kernels] = [TritonKernels(torch.float32, DEVICE, kv_dtype), TorchKernels(kv_dtype=kv_dtype)]
    for kernels in kinds:
        queries, keys, values = (30 * x for x in views(kernels, 40, heads, 1, 20))
        rope = RotaryTable(quarters.to(kernels.device), (1 - quarters).to(kernels.device)) if rotated else None
        cache, rules = kernels.allocate(7, CacheSpec(1, 20, 20)), AttentionRules(1e-3, rope=rope)
        for rows, context in ((slice(before), before), (slice(before, None), 40)):
            batch = ragged([40], [tokens], kernels.device)
            if context == before:
                batch = replace(
                    batch,
                    positions=torch.arange(before, device=kernels.device),
                    slots=slots_of(batch, before),
                    query_starts=torch.tensor([0, before], dtype=torch.int32, device=kernels.device),
                    context_lengths=torch.tensor([before], dtype=torch.int32, device=kernels.device),
                    longest_query=before,
                    decodes=0,
                    plans={},
                )
            results.append(kernels.attend(queries[rows], keys[rows], values[rows], cache, batch, rules).cpu())
        written.append(cache.keys.float().cpu())
    assert torch.equal(written[0].transpose(1, 2), written[1])
    for ours, theirs in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def slots_of(batch: AttentionBatch, tokens: int) -> torch.Tensor:
    """Of the first tokens of its only sequence."""
    positions = torch.arange(tokens, device=batch.positions.device)
    return batch.block_tables[0, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
