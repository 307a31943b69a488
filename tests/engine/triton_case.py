"""One batch for Triton's attention and for its reference, on a GPU or in Triton's interpreter."""

from dataclasses import dataclass

import torch
from torch import Tensor

import tests.engine.interpreter  # noqa: F401  # bfloat16
from headwater_engine.kernels.gpu import TritonKernels
from headwater_engine.kernels.interface import BLOCK_SIZE, CacheSpec
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.kernels.triton.attention import paged_attention
from headwater_engine.kernels.triton.tiling import Processors, Tiling
from tests.engine.batches import ragged, random, views

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROCESSORS = Processors(132, 232_448) if DEVICE.type == "cuda" else Processors(4, 1 << 17)
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 4e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}
EIGHT_BITS = {"rtol": 0.125, "atol": 2e-3}
"""To the next number: what is rounded differs in its last bits."""


def kernels_of(dtype: torch.dtype, kv_dtype: torch.dtype | None = None) -> tuple[TritonKernels, TorchKernels]:
    return TritonKernels(dtype, DEVICE, kv_dtype), TorchKernels(dtype, kv_dtype=kv_dtype)


def same(ours: Tensor, theirs: Tensor) -> None:
    tolerance = TOLERANCE.get(theirs.dtype, EIGHT_BITS)
    if theirs.dtype not in TOLERANCE:
        ours, theirs = ours.float(), theirs.float()
    torch.testing.assert_close(ours.cpu(), theirs, **tolerance)


@dataclass
class Case:
    """A batch and its cache, in which all that the batch must not see is NaN."""

    contexts: list[int]
    new: list[int]
    group: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype | None = None

    def run(self, tiling: Tiling | None, *, sinks: bool = False, **options: float | None) -> None:
        ours, theirs = kernels_of(self.dtype, self.kv_dtype)
        whole, heads = ragged(self.contexts, self.contexts), self.kv_heads * self.group
        _, keys, values = views(theirs, sum(self.contexts), heads, self.kv_heads, self.dim)
        blocks = int(whole.block_tables.max()) + 2
        reference, cache = (
            each.allocate(blocks, CacheSpec(self.kv_heads, self.dim, self.dim)) for each in (theirs, ours)
        )
        theirs.write_cache(keys, values, reference, whole.slots)
        for target, source in zip(cache[:2], (keys, values), strict=True):
            target.fill_(torch.nan)
            target[whole.slots // BLOCK_SIZE, :, whole.slots % BLOCK_SIZE] = source.to(DEVICE, target.dtype)
        queries, _, _ = views(theirs, sum(self.new), heads, self.kv_heads, self.dim)
        sink = random(heads, seed=9) if sinks else None
        scale = self.dim**-0.5
        expected = theirs.paged_attention(
            queries, reference, ragged(self.contexts, self.new), scale=scale, sinks=sink, **options
        )
        found = paged_attention(
            queries.to(DEVICE),
            cache,
            ragged(self.contexts, self.new, DEVICE),
            scale=scale,
            sinks=None if sink is None else sink.to(DEVICE),
            processors=PROCESSORS,
            tiling=tiling,
            **{"window": None, "softcap": None, **options},  # type: ignore[arg-type]
        )
        same(found, expected)
