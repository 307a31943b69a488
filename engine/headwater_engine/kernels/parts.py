"""Operations in parts, one after the other: for kernels that do not do all of it at once, and for tests of parts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, AttentionRules, HeadNorms, LayerCache, Product
from headwater_engine.quantization.stored import StoredWeight


class GatedInParts(ABC):
    """`Kernels.gated` out of two operations."""

    def gated(self, gate: StoredWeight, up: StoredWeight, bias: Tensor | None = None) -> Product:
        product, silu_mul = self.linear([gate, up], bias), self.silu_mul
        return lambda x: silu_mul(product(x))

    @abstractmethod
    def linear(self, parts: Sequence[StoredWeight], bias: Tensor | None = None, *, wide: bool = False) -> Product:
        """As in `Kernels`."""

    @abstractmethod
    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2 * I] -> [T, I]: silu(first half) * second half."""


class AttentionInParts(ABC):
    """`Kernels.attend` and `attend_projected` out of three operations."""

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        rules: AttentionRules,
        rows: Tensor | None = None,
    ) -> Tensor:
        if rules.rope is None:
            self.write_cache(keys, values, cache, batch.slots)
        else:
            queries = self.place(queries, keys, values, rules.rope.cos, rules.rope.sin, cache, batch, rules.norms)
        if rows is not None:
            queries, batch = queries[rows], batch.only(rows)
        return self.paged_attention(
            queries,
            cache,
            batch,
            scale=rules.scale,
            window=rules.window,
            softcap=rules.softcap,
            sinks=rules.sinks,
        )

    def attend_projected(
        self,
        projected: Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        rules: AttentionRules,
        rows: Tensor | None = None,
    ) -> Tensor:
        kv_heads, dim = cache.heads, cache.value_dim
        heads = projected.view(len(projected), -1, dim)
        queries, keys, values = heads.split_with_sizes((heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
        return self.attend(queries, keys, values, cache, batch, rules, rows).flatten(1)

    @abstractmethod
    def write_cache(self, keys: Tensor, values: Tensor, cache: LayerCache, slots: Tensor) -> None:
        """Store keys [T, kv heads, key dim] and values [T, kv heads, value dim] at `slots` [T]."""

    @abstractmethod
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
        """All that comes before attention: norms of heads, rotation, keys and values to the cache.

        Returns the queries; those that were given, and the keys, may be overwritten.
        """

    @abstractmethod
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
        """Attention of queries [T, heads, key dim] over the cached context: [T, heads, value dim]."""
