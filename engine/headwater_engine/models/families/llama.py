"""Llama 2 and 3, SmolLM2, and the many that share their architecture."""

from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, LayerCache, RotaryTable
from headwater_engine.layers.attention import Attention
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.mlp import GatedMLP
from headwater_engine.layers.norm import RMSNorm
from headwater_engine.layers.rope import Rope
from headwater_engine.models.config import DecoderConfig, RawConfig, read_decoder
from headwater_engine.models.decoder import Decoder, Progress
from headwater_engine.models.family import Family


class LlamaBlock:
    """Self-attention and a gated MLP, each behind a norm of its own."""

    __slots__ = ("_attention", "_attention_norm", "_mlp", "_mlp_norm", "cache")

    def __init__(self, config: DecoderConfig, index: int, linears: Linears, rope: RotaryTable) -> None:
        hidden, eps = config.hidden_size, config.norm_eps
        self._attention_norm = RMSNorm(linears, "input_layernorm", hidden, eps)
        self._attention = Attention(linears.scope("self_attn"), hidden, config.attention, rope, config.windows[index])
        self.cache = self._attention.cache
        self._mlp_norm = RMSNorm(linears, "post_attention_layernorm", hidden, eps)
        self._mlp = GatedMLP(linears.scope("mlp"), hidden, config.intermediate_size, bias=config.mlp_bias)

    def __call__(
        self, x: Tensor | None, residual: Tensor, batch: AttentionBatch, cache: LayerCache, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = self._attention(self._attention_norm.add(x, residual), batch, cache, rows)
        if rows is not None:
            residual, batch = residual[rows], batch.only(rows)
        x = self._mlp(self._mlp_norm.add(x, residual), batch)
        return x, residual


def llama_like(config: DecoderConfig, linears: Linears, progress: Progress) -> Decoder:
    """A decoder of Llama's blocks."""
    rope = Rope(config.rope, linears.kernels.device)
    return Decoder(config, [rope], linears, lambda index, layer: LlamaBlock(config, index, layer, rope.table), progress)


def _llama(raw: RawConfig, linears: Linears, progress: Progress) -> Decoder:
    biased = raw.flag("attention_bias", False)
    config = read_decoder(raw, qkv_bias=biased, output_bias=biased, mlp_bias=raw.flag("mlp_bias", False))
    return llama_like(config, linears, progress)


FAMILY = Family(_llama)
