"""Every kernel in plain torch: the definition of what the fast ones compute, and the fallback where none can be built.

Written to be read, not to be fast. The tests hold every other implementation against this one.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater_engine.kernels import reference_inputs, reference_sampling
from headwater_engine.kernels.huge_pages import taken_zeros
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
from headwater_engine.quantization.stored import StoredWeight, join


class TorchKernels(AttentionInParts, GatedInParts):
    """`Kernels` in plain torch. Weights and activations are of `dtype`; sums and softmax are float32."""

    device = torch.device("cpu")
    prefix_groups = 0

    def __init__(
        self, dtype: torch.dtype = torch.float32, reason: str = "", kv_dtype: torch.dtype | None = None
    ) -> None:
        """`reason`: why they run instead of faster ones. `kv_dtype`: of keys and values; None: as the rest."""
        self.dtype = dtype
        self._kv_dtype = kv_dtype or dtype
        self.name = f"cpu-torch: {reason}" if reason else "cpu-torch"

    def allocate(self, blocks: int, spec: CacheSpec) -> LayerCache:
        """Keys [blocks, BLOCK_SIZE, kv heads, key dim] and values [blocks, BLOCK_SIZE, kv heads, value dim]."""
        return LayerCache(
            taken_zeros((blocks, BLOCK_SIZE, spec.heads, spec.key_dim), self._kv_dtype),
            taken_zeros((blocks, BLOCK_SIZE, spec.heads, spec.value_dim), self._kv_dtype),
            spec.heads,
            spec.value_dim,
        )

    def bytes_per_block(self, spec: CacheSpec) -> int:
        return BLOCK_SIZE * spec.heads * (spec.key_dim + spec.value_dim) * self._kv_dtype.itemsize

    def write_cache(self, keys: Tensor, values: Tensor, cache: LayerCache, slots: Tensor) -> None:
        cache.keys.flatten(0, 1)[slots] = _rounded(keys, cache.keys.dtype)
        cache.values.flatten(0, 1)[slots] = _rounded(values, cache.values.dtype)

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
        if norms is not None:
            queries = self.rms_norm(queries, norms.queries, norms.eps)
            keys = self.rms_norm(keys, norms.keys, norms.eps)
        self.rope(queries, keys, cos, sin, batch.positions)
        self.write_cache(keys, values, cache, batch.slots)
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
        output = queries.new_empty(*queries.shape[:2], cache.values.shape[-1])
        starts = batch.query_starts.tolist()
        for sequence, context in enumerate(batch.context_lengths.tolist()):
            rows = slice(starts[sequence], starts[sequence + 1])
            blocks = batch.block_tables[sequence, : -(-context // BLOCK_SIZE)].long()
            output[rows] = _attention(
                queries[rows],
                cache.keys[blocks].flatten(0, 1)[:context],
                cache.values[blocks].flatten(0, 1)[:context],
                scale,
                window,
                softcap,
                sinks,
            )
        return output

    def linear(self, parts: Sequence[StoredWeight], bias: Tensor | None = None, *, wide: bool = False) -> Product:
        weight = join(parts, self.dtype, self.device)
        bias = None if bias is None else bias.to(self.dtype)
        return lambda x: F.linear(x, weight, bias).to(torch.float32 if wide else self.dtype)

    def lookup(self, table: Tensor) -> Lookup:
        return of_part(lambda rows: F.embedding(rows, table).to(self.dtype), len(table))

    def tied(self, table: StoredWeight) -> tuple[Lookup, Product]:
        weight = join([table], self.dtype, self.device)
        return self.lookup(weight), lambda x: F.linear(x, weight).float()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (normed * weight.float()).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual.add_(x)
        return self.rms_norm(residual, weight, eps)

    def rope(self, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
        """The rotation of `place`, in place."""
        half = cos.shape[-1]
        cosines, sines = (
            cos[positions].unsqueeze(1),
            sin[positions].unsqueeze(1),
        )  # [T, 1, half]: the same for all heads
        for x in (queries, keys):
            first, second = x[..., :half].float(), x[..., half : 2 * half].float()
            rotated = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
            x[..., : 2 * half] = rotated.to(x.dtype)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(gate_up.dtype)

    def spread(self, told: Told, tables: SeatTables, batch: FlatBatch) -> None:
        reference_inputs.spread(told, tables, batch)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return self.maxima(logits, batch).tokens

    def sample_scored(self, logits: Tensor, batch: SamplingBatch, rows: Tensor, k: int) -> tuple[Tensor, Scores]:
        return reference_sampling.sample_scored(self.sample, logits, batch, rows, k)

    def maxima(self, logits: Tensor, batch: SamplingBatch) -> Maxima:
        return reference_sampling.maxima(logits, batch)


def of_part(rows_of: Callable[[Tensor], Tensor], count: int) -> Lookup:
    """Out of a lookup of `count` rows by their numbers, one that also takes tokens that are not among them."""

    def look_up(tokens: Tensor, first: int | None = None) -> Tensor:
        if first is None:
            return rows_of(tokens)
        rows = tokens - first
        elsewhere = (rows < 0) | (rows >= count)
        return rows_of(rows.masked_fill(elsewhere, 0)).masked_fill_(elsewhere.unsqueeze(1), 0)

    return look_up


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in the type of a cache. In 8 bits, what is too large is not infinity, and what is no number stays none."""
    if dtype == torch.float8_e4m3fn:
        largest = torch.finfo(dtype).max
        x = x.float().clamp(-largest, largest)
    return x.to(dtype)


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """One sequence: queries [N, heads, D] of its last N tokens over keys [C, kv heads, D], values [C, kv heads, V]."""
    new, heads, _ = queries.shape
    context, kv_heads, _ = keys.shape
    grouped = queries.float().unflatten(1, (kv_heads, heads // kv_heads))

    scores = torch.einsum("nkgd,ckd->kgnc", grouped, keys.float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    query_positions = torch.arange(context - new, context).unsqueeze(1)
    key_positions = torch.arange(context).unsqueeze(0)
    visible = key_positions <= query_positions
    if window is not None:
        visible &= key_positions > query_positions - window
    scores = scores.masked_fill(~visible, float("-inf"))

    if sinks is not None:
        column = sinks.float().view(kv_heads, -1, 1, 1).expand(-1, -1, new, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :context]
    return torch.einsum("kgnc,ckv->nkgv", weights, values.float()).flatten(1, 2).to(queries.dtype)
