"""The kernels for CPUs, in C++: `gemm.cpp`, `cache.cpp`, `attention.cpp`, `elementwise.cpp`, `sampling.cpp`, and
`team.h`, the threads that they share their work with. Each opens with how it works. `build.py` compiles them.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from headwater_engine.kernels import reference_inputs, reference_sampling
from headwater_engine.kernels.build import build
from headwater_engine.kernels.huge_pages import Arena, taken_zeros
from headwater_engine.kernels.interface import (
    BLOCK_SIZE,
    AttentionBatch,
    AttentionRules,
    CacheSpec,
    FlatBatch,
    HeadNorms,
    LayerCache,
    Lookup,
    Maxima,
    Product,
    Recorder,
    SamplingBatch,
    Scores,
    SeatTables,
    Told,
)
from headwater_engine.kernels.parts import AttentionInParts, GatedInParts
from headwater_engine.kernels.recording import cpu_recorder
from headwater_engine.kernels.reference import of_part
from headwater_engine.quantization.stored import StoredWeight, join

_TILE: Final = 16
"""Outputs in a panel (`gemm.cpp`)."""


class Products(StrEnum):
    """How weights are multiplied with activations."""

    FLOAT32 = "float32"
    """Of float32 activations. bfloat16 weights only halve the memory to read: results are those of float32 arithmetic
    on the same weights."""
    BFLOAT16 = "bfloat16"
    """Of bfloat16 activations: for AMX and AVX512_BF16, slow elsewhere."""


class CppKernels(AttentionInParts, GatedInParts):
    """`Kernels` for CPUs."""

    device = torch.device("cpu")
    prefix_groups = 0

    def __init__(self, weights: torch.dtype, products: Products, kv_dtype: torch.dtype | None = None) -> None:
        """`weights`: float32 or bfloat16. Only FLOAT32 products take float32. Raises BuildError.

        `kv_dtype`: of keys and values, bfloat16 where it is not the weights' own.
        """
        self._kernels = build()
        self._arena = Arena()
        self._storage = weights
        self._kv_dtype = kv_dtype or weights
        self.dtype = torch.float32 if products == Products.FLOAT32 else torch.bfloat16
        self.name = f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}-{str(weights).removeprefix('torch.')}"

    def allocate(self, blocks: int, spec: CacheSpec) -> LayerCache:
        """Room for keys [blocks, kv heads, key dim, BLOCK_SIZE] and values [blocks, kv heads, BLOCK_SIZE, value dim].

        Only the kernels know the order within a block (`cache.h`).
        """
        return LayerCache(
            taken_zeros((blocks, spec.heads, _padded(spec.key_dim, 2), BLOCK_SIZE), self._kv_dtype),
            taken_zeros((blocks, spec.heads, BLOCK_SIZE, _padded(spec.value_dim)), self._kv_dtype),
            spec.heads,
            spec.value_dim,
        )

    def bytes_per_block(self, spec: CacheSpec) -> int:
        return BLOCK_SIZE * spec.heads * (_padded(spec.key_dim, 2) + _padded(spec.value_dim)) * self._kv_dtype.itemsize

    def write_cache(self, keys: Tensor, values: Tensor, cache: LayerCache, slots: Tensor) -> None:
        self._kernels.write_cache(keys, values, cache.keys, cache.values, slots)

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
        weights, eps = (None, 0.0) if norms is None else ((norms.queries, norms.keys), norms.eps)
        self._kernels.place(
            queries, keys, values, cos, sin, batch.positions, cache.keys, cache.values, batch.slots, weights, eps
        )
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
        return self._kernels.paged_attention(
            queries,
            cache.keys,
            cache.values,
            batch.block_tables,
            batch.query_starts,
            batch.context_lengths,
            self._plan(batch, queries.shape[1], cache.heads, window or 0),
            cache.value_dim,
            scale,
            window or 0,
            softcap or 0.0,
            None if sinks is None else sinks.float(),
        )

    def attend_projected(
        self,
        projected: Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        rules: AttentionRules,
        rows: Tensor | None = None,
    ) -> Tensor:
        """In one call. Python and torch are out of the CPU's caches whenever a step needs them again: each of torch's
        operations takes some 15 microseconds then, while a second core waits."""
        if rules.rope is None or rows is not None:
            return super().attend_projected(projected, cache, batch, rules, rows)
        dim, window, norms = cache.value_dim, rules.window or 0, rules.norms
        return self._kernels.attend(
            projected,
            cache.keys,
            cache.values,
            dim,
            rules.rope.cos,
            rules.rope.sin,
            batch.positions,
            batch.slots,
            batch.block_tables,
            batch.query_starts,
            batch.context_lengths,
            self._plan(batch, projected.shape[1] // dim - 2 * cache.heads, cache.heads, window),
            None if norms is None else (norms.queries, norms.keys),
            0.0 if norms is None else norms.eps,
            rules.scale,
            window,
            rules.softcap or 0.0,
            None if rules.sinks is None else rules.sinks.float(),
        )

    def _plan(self, batch: AttentionBatch, *kind: int) -> object:
        """What attention does in this step, for layers of so many heads, KV heads, and of this window."""
        if (plan := batch.plans.get(kind)) is None:
            sequences = (batch.block_tables, batch.query_starts, batch.context_lengths)
            batch.plans[kind] = plan = self._kernels.plan_attention(*sequences, *kind)
        return plan

    def linear(self, parts: Sequence[StoredWeight], bias: Tensor | None = None, *, wide: bool = False) -> Product:
        weight = join(parts, self._storage, self.device)
        return self._product(self.pack(weight), weight.shape, bias, wide=wide)

    def gated(self, gate: StoredWeight, up: StoredWeight, bias: Tensor | None = None) -> Product:
        outputs, inputs = gate.shape
        if self.dtype != torch.bfloat16 or not self._kernels.takes_gated(inputs, outputs):
            return super().gated(gate, up, bias)
        whole = [join([each], self._storage, self.device).view(-1, 1, _TILE, inputs) for each in (gate, up)]
        packed = self.pack(torch.cat(whole, dim=1).view(-1, inputs))
        wide_bias = None if bias is None else bias.float().contiguous()
        gated_linear = self._kernels.gated_linear
        return lambda x: gated_linear(x, packed, wide_bias, inputs, outputs)

    def recorder(self) -> Recorder:
        """Of steps that compute with these kernels only; it raises NotRecordableError for others."""
        return cpu_recorder(self._kernels)

    def lookup(self, table: Tensor) -> Lookup:
        take_rows, dtype = self._kernels.take_rows, self.dtype
        return of_part(lambda rows: take_rows(table, rows, dtype), len(table))

    def tied(self, table: StoredWeight) -> tuple[Lookup, Product]:
        packed = self.pack(join([table], self._storage, self.device))
        outputs, inputs = table.shape
        unpack_rows, dtype = self._kernels.unpack_rows, self.dtype
        product = self._product(packed, table.shape, None, wide=True)
        return of_part(lambda rows: unpack_rows(packed, rows, inputs, outputs, dtype), outputs), product

    def pack(self, weight: Tensor) -> Tensor:
        """A weight [outputs, inputs] as `gemm.cpp` reads it, in huge pages."""
        packed = self._kernels.pack(weight)
        return self._arena.take(packed.numel(), packed.dtype).copy_(packed)

    def _product(self, packed: Tensor, shape: tuple[int, ...], bias: Tensor | None, *, wide: bool) -> Product:
        outputs, inputs = shape
        wide_bias = None if bias is None else bias.float().contiguous()
        linear = self._kernels.linear
        return lambda x: linear(x, packed, wide_bias, inputs, outputs, wide)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._kernels.rms_norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._kernels.rms_norm(x, residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return self._kernels.silu_mul(gate_up)

    def spread(self, told: Told, tables: SeatTables, batch: FlatBatch) -> None:
        reference_inputs.spread(told, tables, batch)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return self.maxima(logits, batch).tokens

    def sample_scored(self, logits: Tensor, batch: SamplingBatch, rows: Tensor, k: int) -> tuple[Tensor, Scores]:
        return reference_sampling.sample_scored(self.sample, logits, batch, rows, k)

    def maxima(self, logits: Tensor, batch: SamplingBatch) -> Maxima:
        found = self._kernels.sample(
            logits,
            batch.inverse_temperatures,
            batch.keys,
            batch.top_k,
            batch.top_p,
            batch.min_weight,
            batch.penalties,
            batch.masks,
            batch.biases,
            batch.unmasked,
            batch.only,
        )
        return Maxima(*found)


def _padded(dim: int, unit: int = 16) -> int:
    return -(-dim // unit) * unit
