"""The decoder that most open models share: pre-norm blocks of self-attention and a gated MLP, as Llama laid it out."""

from collections.abc import Callable

from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, Kernels, LayerCache
from headwater_engine.layers.attention import Attention
from headwater_engine.layers.embedding import Embedding
from headwater_engine.layers.mlp import GatedMLP
from headwater_engine.layers.norm import RMSNorm
from headwater_engine.layers.rope import rotary_table
from headwater_engine.layers.weights import Weights
from headwater_engine.models.config import DecoderConfig, ModelConfig


class Decoder:
    """A model that a `DecoderConfig` describes."""

    recordable = True

    def __init__(
        self, config: DecoderConfig, weights: Weights, kernels: Kernels, progress: Callable[[float], None]
    ) -> None:
        """Takes the weights layer by layer; raises LoadError. `progress` gets the fraction of layers that are there."""
        hidden, eps, attention = config.hidden_size, config.norm_eps, config.attention
        self.config = ModelConfig(
            vocab_size=config.vocab_size,
            num_layers=config.num_layers,
            kv_heads=attention.kv_heads,
            key_dim=attention.head_dim,
            value_dim=attention.head_dim,
            max_positions=config.rope.max_positions,
            dtype=weights.dtype,
        )
        self._embedding = Embedding(weights, config.vocab_size, hidden, kernels, tied=config.tied_embeddings)
        rope = rotary_table(config.rope, kernels.device)
        self._blocks: list[tuple[RMSNorm, Attention, RMSNorm, GatedMLP]] = []
        for index, window in enumerate(config.windows):
            layer = weights.scope(f"model.layers.{index}")
            block = (
                RMSNorm(layer, "input_layernorm", hidden, eps, kernels),
                Attention(layer.scope("self_attn"), hidden, attention, rope, window, kernels),
                RMSNorm(layer, "post_attention_layernorm", hidden, eps, kernels),
                GatedMLP(layer.scope("mlp"), hidden, config.intermediate_size, kernels, bias=config.mlp_bias),
            )
            self._blocks.append(block)
            progress((index + 1) / config.num_layers)
        self._norm = RMSNorm(weights, "model.norm", hidden, eps, kernels)

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """[T] int64 -> hidden states [T, hidden], normalised, or those of `rows`; writes T keys and values a layer."""
        residual = self._embedding.embed(tokens)
        x = None
        last = self._blocks[-1]
        for block, cache in zip(self._blocks, caches, strict=True):
            input_norm, attention, mlp_norm, mlp = block
            x = input_norm(residual) if x is None else input_norm.add(x, residual)
            wanted = rows if block is last else None
            x = attention(x, batch, cache, wanted)
            if wanted is not None:
                residual = residual[wanted]
            x = mlp(mlp_norm.add(x, residual))
        assert x is not None, "a model has layers"
        return self._norm.add(x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocabulary] float32."""
        return self._embedding.logits(hidden)
