"""The kernels for NVIDIA GPUs: Triton's (`kernels/triton/`), and cuBLAS for products."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater_engine.kernels.interface import (
    BLOCK_SIZE,
    AttentionBatch,
    CacheSpec,
    FlatBatch,
    HeadNorms,
    LayerCache,
    Lookup,
    Maxima,
    Product,
    SamplingBatch,
    Scores,
    SeatTables,
    Told,
)
from headwater_engine.kernels.parts import AttentionInParts, GatedInParts
from headwater_engine.kernels.prefixes import GROUPS
from headwater_engine.kernels.triton import activation, attention, embedding, inputs, norm, rope, sampling, tiling
from headwater_engine.quantization.stored import StoredWeight, join


class TritonKernels(AttentionInParts, GatedInParts):
    """`Kernels` for GPUs. Weights and activations are of `dtype`; sums and softmax are float32."""

    prefix_groups = GROUPS

    def __init__(self, dtype: torch.dtype, device: torch.device, kv_dtype: torch.dtype | None = None) -> None:
        """`kv_dtype`: of keys and values; None: as the rest."""
        self.dtype = dtype
        self._kv_dtype = kv_dtype or dtype
        self.device = device
        self.name = f"{device.type}-triton-{str(dtype).removeprefix('torch.')}"
        # Under Triton's interpreter, on a CPU: a few, so that long contexts are cut there, too.
        self._processors = tiling.Processors(4, 1 << 17)
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self._processors = tiling.Processors(
                properties.multi_processor_count, properties.shared_memory_per_block_optin
            )

    def allocate(self, blocks: int, spec: CacheSpec) -> LayerCache:
        """Keys [blocks, kv heads, BLOCK_SIZE, key dim] and values [blocks, kv heads, BLOCK_SIZE, value dim].

        So that the tokens of a block lie side by side for one head, which is what a program reads.
        """
        keys, values = (
            torch.zeros(blocks, spec.heads, BLOCK_SIZE, dim, dtype=self._kv_dtype, device=self.device)
            for dim in (spec.key_dim, spec.value_dim)
        )
        return LayerCache(keys, values, spec.heads, spec.value_dim)

    def bytes_per_block(self, spec: CacheSpec) -> int:
        return BLOCK_SIZE * spec.heads * (spec.key_dim + spec.value_dim) * self._kv_dtype.itemsize

    def write_cache(self, keys: Tensor, values: Tensor, cache: LayerCache, slots: Tensor) -> None:
        rope.write_cache(keys, values, cache, slots)

    def place(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        norms: HeadNorms | None = None,
    ) -> Tensor:
        rope.place(queries, keys, values, cos, sin, batch.positions, batch.slots, cache, norms)
        return queries

    def paged_attention(
        self,
        queries: Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        return attention.paged_attention(
            queries,
            cache,
            batch,
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
            processors=self._processors,
        )

    def linear(self, parts: Sequence[StoredWeight], bias: Tensor | None = None, *, wide: bool = False) -> Product:
        weight = join(parts, self.dtype, self.device)
        bias = None if bias is None else bias.to(self.device, self.dtype)
        if wide and bias is None and self.dtype != torch.float32:
            # cuBLAS sums in float32; nothing rounds it.
            return lambda x: torch.mm(x, weight.t(), out_dtype=torch.float32)
        return lambda x: F.linear(x, weight, bias).to(torch.float32 if wide else self.dtype)

    def lookup(self, table: Tensor) -> Lookup:
        return lambda tokens, first=None: embedding.look_up(tokens, table, first or 0, self.dtype)

    def tied(self, table: StoredWeight) -> tuple[Lookup, Product]:
        weight = join([table], self.dtype, self.device)
        # On a GPU one part is taken as it is.
        return self.lookup(weight), self.linear([StoredWeight(weight)], wide=True)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.add_rms_norm(x, residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return activation.silu_mul(gate_up)

    def spread(self, told: Told, tables: SeatTables, batch: FlatBatch) -> None:
        inputs.spread(told, tables, batch)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return self.maxima(logits, batch).tokens

    def sample_scored(self, logits: Tensor, batch: SamplingBatch, rows: Tensor, k: int) -> tuple[Tensor, Scores]:
        return sampling.sample_scored(logits, batch, rows, k)

    def maxima(self, logits: Tensor, batch: SamplingBatch) -> Maxima:
        return sampling.maxima(logits, batch)
