"""Self-attention over the paged cache, with grouped queries, optional query and key norms, and a sliding window."""

from dataclasses import dataclass

from torch import Tensor

from headwater_engine.kernels.interface import (
    AttentionBatch,
    AttentionRules,
    CacheSpec,
    HeadNorms,
    LayerCache,
    RotaryTable,
)
from headwater_engine.layers.linears import Linears


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """The shape of self-attention, the same in all layers."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    head_norm_eps: float | None = None
    """Of the RMS norms over each query and key head, before the rotation. None: there are none."""
    head_norm_offset: float = 0.0
    """Added to the weights of those norms."""
    scale: float | None = None
    """Of the scores. None: 1 / sqrt(head_dim)."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""


class Attention:
    """Projects, attends, projects back; what the cache needs is between."""

    __slots__ = ("_kernels", "_o", "_qkv", "_rules", "cache")

    def __init__(
        self, linears: Linears, hidden: int, config: AttentionConfig, rope: RotaryTable, window: int | None
    ) -> None:
        dim = config.head_dim
        heads, kv_heads = linears.share_heads(config.heads, config.kv_heads)
        self.cache = CacheSpec(kv_heads.size, dim, dim)
        names, queries, keys = ("q_proj", "k_proj", "v_proj"), heads.of_heads(dim), kv_heads.of_heads(dim)
        self._qkv = linears.column(names, hidden, (queries, keys, keys), bias=config.qkv_bias)
        self._o = linears.row("o_proj", queries, hidden, bias=config.output_bias)
        norms = None
        if config.head_norm_eps is not None:
            query_norm, key_norm = (
                linears.vector(f"{name}.weight", dim, offset=config.head_norm_offset) for name in ("q_norm", "k_norm")
            )
            norms = HeadNorms(query_norm, key_norm, config.head_norm_eps)
        self._rules = AttentionRules(config.scale or dim**-0.5, window, config.softcap, rope=rope, norms=norms)
        self._kernels = linears.kernels

    def __call__(self, x: Tensor, batch: AttentionBatch, cache: LayerCache, rows: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden]; writes the keys and values of the T tokens to the cache.

        With `rows` [R], each the last token of its sequence, only they attend: [R, hidden].
        """
        attended = self._kernels.attend_projected(self._qkv(x, batch), cache, batch, self._rules, rows)
        return self._o(attended, batch if rows is None else batch.only(rows))
