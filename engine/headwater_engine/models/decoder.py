"""The decoder that most open models share: pre-norm blocks of self-attention and a gated MLP, as Llama laid it out."""

from collections.abc import Callable

from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, LayerCache
from headwater_engine.layers.attention import Attention
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.mlp import GatedMLP
from headwater_engine.layers.norm import RMSNorm
from headwater_engine.layers.rope import rotary_table
from headwater_engine.models.config import DecoderConfig, ModelConfig


class Decoder:
    """A model that a `DecoderConfig` describes."""

    recordable = True

    def __init__(self, config: DecoderConfig, linears: Linears, progress: Callable[[float], None]) -> None:
        """Takes the weights layer by layer; raises LoadError. `progress` gets the fraction of layers that are there."""
        hidden, eps, attention = config.hidden_size, config.norm_eps, config.attention
        self.config = ModelConfig(
            vocab_size=config.vocab_size,
            num_layers=config.num_layers,
            kv_heads=attention.kv_heads,
            key_dim=attention.head_dim,
            value_dim=attention.head_dim,
            max_positions=config.rope.max_positions,
        )
        self._vocabulary = linears.vocabulary("model.embed_tokens", config.vocab_size, hidden)
        scored = self._vocabulary
        if not config.tied_embeddings:
            scored = linears.vocabulary("lm_head", config.vocab_size, hidden)
        self._head = scored.head()
        rope = rotary_table(config.rope, linears.kernels.device)
        self._blocks: list[tuple[RMSNorm, Attention, RMSNorm, GatedMLP]] = []
        for index, window in enumerate(config.windows):
            layer = linears.scope(f"model.layers.{index}")
            block = (
                RMSNorm(layer, "input_layernorm", hidden, eps),
                Attention(layer.scope("self_attn"), hidden, attention, rope, window),
                RMSNorm(layer, "post_attention_layernorm", hidden, eps),
                GatedMLP(layer.scope("mlp"), hidden, config.intermediate_size, bias=config.mlp_bias),
            )
            self._blocks.append(block)
            progress((index + 1) / config.num_layers)
        self._norm = RMSNorm(linears, "model.norm", hidden, eps)

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """[T] int64 -> hidden states [T, hidden], normalised, or those of `rows`; writes T keys and values a layer."""
        residual = self._vocabulary.embed(tokens)
        x = None
        last = self._blocks[-1]
        for block, cache in zip(self._blocks, caches, strict=True):
            input_norm, attention, mlp_norm, mlp = block
            x = input_norm(residual) if x is None else input_norm.add(x, residual)
            wanted = rows if block is last else None
            x = attention(x, batch, cache, wanted)
            if wanted is not None:
                residual, batch = residual[wanted], batch.only(wanted)
            x = mlp(mlp_norm.add(x, residual), batch)
        assert x is not None, "a model has layers"
        return self._norm.add(x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocabulary] float32."""
        return self._head(hidden)
