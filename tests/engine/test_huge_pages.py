"""Weights and the KV cache lie in memory for which huge pages are asked."""

import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headwater_engine.kernels import select
from headwater_engine.kernels.cpu import CppKernels
from headwater_engine.kernels.huge_pages import Arena
from headwater_engine.kernels.interface import CacheSpec

MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$", re.MULTILINE | re.DOTALL)


def asks_for_huge_pages(tensor: Tensor) -> bool:
    for start, end, flags in MAPPING.findall(Path("/proc/self/smaps").read_text()):
        if int(start, 16) <= tensor.data_ptr() < int(end, 16):
            return "hg" in flags.split()
    raise AssertionError("the tensor is in no mapping")


def test_tensors_of_an_arena_are_zeros_that_nobody_shares() -> None:
    arena = Arena()
    counts = [1, 63, 64, 65, 1000, 40 << 20, 1, 40 << 20, 100 << 20, 7]
    taken = [arena.take(count, torch.bfloat16) for count in counts]
    for number, tensor in enumerate(taken):
        assert tensor.data_ptr() % 128 == 0
        tensor[0] = tensor[-1] = number + 1
    del arena
    for number, tensor in enumerate(taken):
        assert len(tensor) == counts[number]
        assert tensor[0] == tensor[-1] == number + 1
        assert not tensor[1:-1].any()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_step_reads_lies_in_huge_pages(dtype: torch.dtype) -> None:
    kernels = select(dtype)
    assert isinstance(kernels, CppKernels)
    cache = kernels.allocate(8, CacheSpec(heads=2, key_dim=64, value_dim=64))
    packed = kernels.pack(torch.randn(96, 64).to(dtype))
    assert all(map(asks_for_huge_pages, (cache.keys, cache.values, packed)))
    assert not asks_for_huge_pages(torch.frombuffer(mmap.mmap(-1, 1 << 16), dtype=torch.uint8))
