"""The two ends of a model: token to vector, and vector to logits."""

import torch
from torch import Tensor

from headwater_engine.distributed.ranks import Ranks
from headwater_engine.kernels.interface import Kernels, Product
from headwater_engine.quantization.stored import StoredWeight


class Vocabulary:
    """A vector for each token: what it becomes at the entrance, and what hidden states are compared to at the exit.

    Many models have one table for both (tied embeddings), others two.
    """

    def __init__(self, table: Tensor, scale: float, kernels: Kernels, ranks: Ranks) -> None:
        """`table` holds this rank's tokens, as many as each other rank's."""
        self._table: Tensor | None = table
        self._each = len(table)
        self._look_up = kernels.lookup(table)
        # Rounded to the weights' type, as those who trained with it did.
        self._scale = float(torch.tensor(scale).to(table.dtype))
        self._kernels = kernels
        self._ranks = ranks

    def equals(self, other: "Vocabulary") -> bool:
        """Whether the vectors that this rank has are the same."""
        assert self._table is not None and other._table is not None, "before `head`"
        return torch.equal(self._table, other._table)

    def embed(self, tokens: Tensor) -> Tensor:
        """[T] -> [T, size], of the kernels' activation type."""
        if self._ranks.size == 1:
            vectors = self._look_up(tokens)
        else:
            # Each rank has the vectors of some tokens and zeros for all others, which the sum puts together.
            vectors = self._ranks.sum(self._look_up(tokens, self._ranks.rank * self._each))
        return vectors if self._scale == 1.0 else vectors.mul_(self._scale)

    def head(self) -> Product:
        """[R, size] -> logits [R, tokens] float32, of this rank's tokens.

        The table is the kernels' from here on, who keep it once for both uses.
        """
        assert self._table is not None, "only once"
        self._look_up, product = self._kernels.tied(StoredWeight(self._table))
        self._table = None
        return product
