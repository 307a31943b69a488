"""The two ends of a model: token to vector, and vector to logits."""

import torch.nn.functional as F
from torch import Tensor

from headwater_engine.kernels.interface import Kernels
from headwater_engine.layers.weights import Weights


class Embedding:
    """The table of token vectors, and the head that scores hidden states: a matrix of its own, or the table (tied)."""

    def __init__(self, weights: Weights, vocab_size: int, hidden_size: int, kernels: Kernels, *, tied: bool) -> None:
        self._table = weights.take("model.embed_tokens.weight", vocab_size, hidden_size)
        self._dtype = kernels.dtype
        head = self._table if tied else weights.take("lm_head.weight", vocab_size, hidden_size)
        self._head = kernels.linear(head, wide=True)

    def embed(self, tokens: Tensor) -> Tensor:
        """[T] -> [T, hidden size], of the kernels' activation type."""
        return F.embedding(tokens, self._table).to(self._dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden size] -> [R, vocabulary] float32."""
        return self._head(hidden)
