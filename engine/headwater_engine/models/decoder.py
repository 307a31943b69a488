"""The decoder of most open models: vectors of tokens, blocks one after the other, a norm, scores of all tokens.

What is in a block is a family's own affair (`models/families/`).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, CacheSpec, LayerCache
from headwater_engine.layers.embedding import Vocabulary
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.norm import RMSNorm
from headwater_engine.layers.rope import Rope
from headwater_engine.models.config import DecoderConfig, ModelConfig

log = structlog.get_logger(__name__)


class Block(Protocol):
    """One layer: attention and what is around it."""

    cache: CacheSpec

    def __call__(
        self, x: Tensor | None, residual: Tensor, batch: AttentionBatch, cache: LayerCache, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`x` and `residual` [T, hidden] to the next two; a hidden state is their sum.

        They come apart because the next norm adds them in one pass; it may do so in place. In the first block there is
        no `x` yet. With `rows` [R], each the last token of its sequence, only their next two: [R, hidden]. Writes the
        keys and values of all T tokens to the cache.
        """


MakeBlock = Callable[[int, Linears], Block]
"""The block of a layer's number, with the parameters of that layer."""
Progress = Callable[[float], None]
"""Is told the fraction of layers that are loaded, 0 to 1."""


class Decoder:
    """A model that a `DecoderConfig` describes, with blocks that its family makes."""

    recordable = True

    def __init__(
        self, config: DecoderConfig, ropes: Sequence[Rope], linears: Linears, block: MakeBlock, progress: Progress
    ) -> None:
        """Takes the weights layer by layer; `ropes` are those of the blocks. Raises LoadError."""
        hidden = config.hidden_size
        self._ropes = ropes
        self._vocabulary, scored = _vocabularies(config, linears)
        self._head = scored.head()
        self._blocks: list[Block] = []
        for index in range(config.num_layers):
            self._blocks.append(block(index, linears.scope(f"model.layers.{index}")))
            progress((index + 1) / config.num_layers)
        self._norm = RMSNorm(linears, "model.norm", hidden, config.norm_eps, offset=config.norm_offset)
        self._softcap = config.logit_softcap
        self.config = ModelConfig(
            config.vocab_size, tuple(block.cache for block in self._blocks), config.rope.max_positions
        )

    def reach(self, positions: int) -> None:
        for rope in self._ropes:
            rope.reach(positions)

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """[T] int64 -> hidden states [T, hidden], normalised, or those of `rows`; writes T keys and values a layer."""
        x, residual = None, self._vocabulary.embed(tokens)
        last = self._blocks[-1]
        for block, cache in zip(self._blocks, caches, strict=True):
            x, residual = block(x, residual, batch, cache, rows if block is last else None)
        return self._norm.add(x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocabulary] float32, or this rank's part of that."""
        logits = self._head(hidden)
        return logits if self._softcap is None else logits.div_(self._softcap).tanh_().mul_(self._softcap)


def _vocabularies(config: DecoderConfig, linears: Linears) -> tuple[Vocabulary, Vocabulary]:
    """What tokens become, and what hidden states are compared to: one table or two. Raises LoadError.

    A config may say that they are one while its checkpoint holds two, most often since a trainer left the default of
    the base model standing. What was trained counts, as in transformers: two that differ are two, and of one that is
    missing the other takes the place.
    """
    rows, size = config.vocab_size, config.hidden_size
    entrance, head = "model.embed_tokens", "lm_head"
    if config.tied_embeddings:
        both = [name for name in (entrance, head) if linears.has(name)] or [entrance]
        entrance, head = both[0], both[-1]
    embedded = linears.vocabulary(entrance, rows, size, scale=config.embedding_scale)
    if head == entrance:
        return embedded, embedded
    scored = linears.vocabulary(head, rows, size)
    if not config.tied_embeddings:
        return embedded, scored
    if scored.equals(embedded):
        return embedded, embedded
    log.warning(
        "tie_word_embeddings says that lm_head is the embedding, and the checkpoint holds another one, which is used",
        tensors=[f"{entrance}.weight", f"{head}.weight"],
    )
    return embedded, scored
