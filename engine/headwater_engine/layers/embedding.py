"""The two ends of a model: token to vector, and vector to logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater_engine.kernels.interface import Kernels, Product
from headwater_engine.quantization.stored import StoredWeight


class Vocabulary:
    """A vector for each token: what it becomes at the entrance, and what hidden states are compared to at the exit.

    Many models have one table for both (tied embeddings), others two.
    """

    def __init__(self, table: Tensor, scale: float, kernels: Kernels) -> None:
        self._table = table
        # Rounded to the weights' type, as those who trained with it did.
        self._scale = float(torch.tensor(scale).to(table.dtype))
        self._kernels = kernels

    def embed(self, tokens: Tensor) -> Tensor:
        """[T] -> [T, size], of the kernels' activation type."""
        vectors = F.embedding(tokens, self._table).to(self._kernels.dtype)
        return vectors if self._scale == 1.0 else vectors.mul_(self._scale)

    def head(self) -> Product:
        """[R, size] -> logits [R, tokens] float32."""
        return self._kernels.linear([StoredWeight(self._table)], wide=True)
