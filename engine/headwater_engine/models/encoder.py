"""BERT, RoBERTa and those that share their architecture (MiniLM, BGE, E5): all tokens of a text see one another.

A text is computed as a whole and nothing is kept of it, so there is no KV cache. Attention is torch's own, one text at
a time: what becomes of a text does not depend on those beside it.

A token of the second text of a pair is told by its number, which is the vocabulary's size larger: so neither the
scheduler nor a step need know of pairs.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import AttentionBatch, LayerCache
from headwater_engine.layers.linears import Linears
from headwater_engine.models.config import ModelConfig, RawConfig
from headwater_engine.models.decoder import Progress


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    heads: int
    norm_eps: float
    positions: int
    """Rows of the table of positions."""
    first_position: int
    """That of the first token: RoBERTa's stand behind its padding."""
    kinds: int
    """Texts that a prompt may have: 2 where it may be a pair."""


def read_encoder(raw: RawConfig) -> EncoderConfig:
    """Raises LoadError."""
    if (activation := raw.text("hidden_act") or "gelu") != "gelu":
        raise LoadError(f"config.json: hidden_act is {activation!r}; encoders run with gelu only.")
    if (positions := raw.text("position_embedding_type") or "absolute") != "absolute":
        raise LoadError(f"config.json: position_embedding_type is {positions!r}; encoders run with absolute only.")
    hidden, heads = raw.integer("hidden_size"), raw.integer("num_attention_heads")
    if hidden % heads:
        raise LoadError(f"config.json: hidden_size {hidden} cannot be shared by {heads} num_attention_heads.")
    padding = raw.values.get("pad_token_id")
    behind_padding = raw.values["model_type"] != "bert"
    return EncoderConfig(
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=raw.integer("intermediate_size"),
        num_layers=raw.layers(),
        heads=heads,
        norm_eps=raw.number("layer_norm_eps", 1e-12),
        positions=raw.integer("max_position_embeddings"),
        first_position=(padding if isinstance(padding, int) else 1) + 1 if behind_padding else 0,
        kinds=raw.integer("type_vocab_size", 2),
    )


class Encoder:
    """Vectors of tokens, blocks one after the other; there is no norm behind them."""

    def __init__(self, config: EncoderConfig, linears: Linears, progress: Progress) -> None:
        """Takes the weights layer by layer. Raises LoadError."""
        hidden, embeddings = config.hidden_size, linears.scope("embeddings")
        self._vocabulary = embeddings.vocabulary("word_embeddings", config.vocab_size, hidden)
        self._positions = embeddings.table("position_embeddings.weight", config.positions, hidden)
        self._kinds = embeddings.table("token_type_embeddings.weight", config.kinds, hidden)
        self._norm = LayerNorm(embeddings, "LayerNorm", hidden, config.norm_eps)
        self._blocks: list[EncoderBlock] = []
        for index in range(config.num_layers):
            self._blocks.append(EncoderBlock(config, linears.scope(f"encoder.layer.{index}")))
            progress((index + 1) / config.num_layers)
        self._vocab_size, self._first_position = config.vocab_size, config.first_position
        self.config = ModelConfig(config.vocab_size * config.kinds, (), config.positions - config.first_position)

    def reach(self, positions: int) -> None:
        """The table of positions is the checkpoint's own."""

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """[T] int64 -> hidden states [T, hidden], or those of `rows`. All texts are whole; there are no caches."""
        kinds = tokens // self._vocab_size
        x = self._vocabulary.embed(tokens - kinds * self._vocab_size)
        x = self._norm(x + self._positions[batch.positions + self._first_position] + self._kinds[kinds])
        for block in self._blocks:
            x = block(x, batch)
        return x if rows is None else x[rows]


class EncoderBlock:
    """Attention among the tokens of a text, and an MLP; each is added, and then the sum is normalised."""

    __slots__ = ("_down", "_head_dim", "_mlp_norm", "_norm", "_o", "_qkv", "_up")

    def __init__(self, config: EncoderConfig, linears: Linears) -> None:
        hidden, attention = config.hidden_size, linears.scope("attention")
        self._head_dim = hidden // config.heads
        features = linears.share(config.heads).of_heads(self._head_dim)
        wide = linears.share(config.intermediate_size)
        names = ("self.query", "self.key", "self.value")
        self._qkv = attention.column(names, hidden, (features,) * 3, bias=True)
        self._o = attention.row("output.dense", features, hidden, bias=True)
        self._norm = LayerNorm(attention, "output.LayerNorm", hidden, config.norm_eps)
        self._up = linears.column(["intermediate.dense"], hidden, [wide], bias=True)
        self._down = linears.row("output.dense", wide, hidden, bias=True)
        self._mlp_norm = LayerNorm(linears, "output.LayerNorm", hidden, config.norm_eps)

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        x = self._norm(x + self._o(self._attend(self._qkv(x, batch), batch), batch))
        return self._mlp_norm(x + self._down(F.gelu(self._up(x, batch)), batch))

    def _attend(self, qkv: Tensor, batch: AttentionBatch) -> Tensor:
        """[T, 3 * features] -> [T, features], those of this rank's heads."""
        heads = qkv.view(len(qkv), 3, -1, self._head_dim).transpose(0, 2)  # [heads, 3, T, D]
        attended = torch.empty_like(heads[:, 0])
        for start, end in pairwise(batch.query_starts.tolist()):
            queries, keys, values = heads[:, :, start:end].unbind(1)
            attended[:, start:end] = F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        return attended.transpose(0, 1).flatten(1)


class LayerNorm:
    """(x - mean) / deviation * weight + bias, over the last dimension."""

    __slots__ = ("_bias", "_eps", "_weight")

    def __init__(self, linears: Linears, name: str, size: int, eps: float) -> None:
        self._weight = linears.vector(f"{name}.weight", size)
        self._bias = linears.vector(f"{name}.bias", size)
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)
