"""Gemma 2: norms before and behind attention and MLP, capped scores and logits, windows in every other layer."""

from dataclasses import replace

from torch import Tensor

from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import AttentionBatch, LayerCache, RotaryTable
from headwater_engine.layers.attention import Attention
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.mlp import GatedMLP, gelu_mul
from headwater_engine.layers.norm import RMSNorm
from headwater_engine.layers.rope import Rope
from headwater_engine.models.config import DecoderConfig, RawConfig, read_decoder, windows_by_layer
from headwater_engine.models.decoder import Decoder, Progress
from headwater_engine.models.family import Family


class GemmaBlock:
    """Four norms: what attention and MLP give is normalised before it joins the residual stream, too."""

    __slots__ = ("_attention", "_attention_norm", "_behind_attention", "_behind_mlp", "_mlp", "_mlp_norm", "cache")

    def __init__(self, config: DecoderConfig, index: int, linears: Linears, rope: RotaryTable) -> None:
        hidden = config.hidden_size

        def norm(name: str) -> RMSNorm:
            return RMSNorm(linears, name, hidden, config.norm_eps, offset=config.norm_offset)

        self._attention_norm = norm("input_layernorm")
        self._attention = Attention(linears.scope("self_attn"), hidden, config.attention, rope, config.windows[index])
        self._behind_attention = norm("post_attention_layernorm")
        self._mlp_norm = norm("pre_feedforward_layernorm")
        self._mlp = GatedMLP(linears.scope("mlp"), hidden, config.intermediate_size, gate=gelu_mul)
        self._behind_mlp = norm("post_feedforward_layernorm")
        self.cache = self._attention.cache

    def __call__(
        self, x: Tensor | None, residual: Tensor, batch: AttentionBatch, cache: LayerCache, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = self._attention(self._attention_norm.add(x, residual), batch, cache, rows)
        if rows is not None:
            residual, batch = residual[rows], batch.only(rows)
        x = self._mlp(self._mlp_norm.add(self._behind_attention(x), residual), batch)
        return self._behind_mlp(x), residual


def read_gemma(
    raw: RawConfig, period: int, *, head_norms: bool, score_cap: float | None, logit_cap: float | None
) -> DecoderConfig:
    """What Gemma 2 and 3 share; every layer has a window but those whose number is a multiple of `period`.

    The caps are those of configs that do not speak of them. Raises LoadError.
    """
    if raw.flag("use_bidirectional_attention", False):
        raise LoadError("config.json: use_bidirectional_attention is true; only models with causal attention run.")
    biased = raw.flag("attention_bias", False)
    config = read_decoder(raw, head_dim=256, qkv_bias=biased, output_bias=biased, head_norms=head_norms, tied=True)
    windowed = tuple(bool(layer % period) for layer in range(1, config.num_layers + 1))
    return replace(
        config,
        attention=replace(
            config.attention,
            head_norm_offset=1.0,
            scale=raw.number("query_pre_attn_scalar", 256) ** -0.5,
            softcap=raw.optional("attn_logit_softcapping", score_cap),
        ),
        windows=windows_by_layer(raw, raw.integer("sliding_window", 4096), windowed),
        norm_offset=1.0,
        embedding_scale=config.hidden_size**0.5,
        logit_softcap=raw.optional("final_logit_softcapping", logit_cap),
    )


def _gemma2(raw: RawConfig, linears: Linears, progress: Progress) -> Decoder:
    config = read_gemma(raw, 2, head_norms=False, score_cap=50.0, logit_cap=30.0)
    rope = Rope(config.rope, linears.kernels.device)
    return Decoder(config, [rope], linears, lambda index, layer: GemmaBlock(config, index, layer, rope.table), progress)


FAMILY = Family(_gemma2, activation="gelu_pytorch_tanh")
