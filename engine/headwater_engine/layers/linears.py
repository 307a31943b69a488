"""Where layers get their products with weights, and the one place where rank, quantization and adapter may meet.

A layer says what it projects: by name, from so many features to so many. What it gets is a `Linear`, and whatever else
there is to it stays in here. In this order, wherever a part of it exists:

    y = product(x)         by weights as the kernels pack them, of what this rank has of them
    y += delta(x, batch)   of each token's own adapter, by this rank's part of it
    y = sum over ranks     where the inputs are shared among them (`row`)
    y += bias              once

So far there is the product, with the bias in it: one rank, weights that are expanded as they load, no adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch, Kernels, Product
from headwater_engine.layers.embedding import Vocabulary
from headwater_engine.layers.weights import Weights


class Linear(Protocol):
    """A projection with everything that belongs to it."""

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        """[T, inputs] -> [T, outputs]; `batch` says which request each of the T tokens is of."""


@dataclass(frozen=True, slots=True)
class _Projection:
    product: Product

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        return self.product(x)


class Linears:
    """Parameters below one prefix of a checkpoint, as layers use them. All methods raise LoadError."""

    def __init__(self, weights: Weights, kernels: Kernels) -> None:
        self.kernels = kernels
        self._weights = weights

    def scope(self, name: str) -> "Linears":
        """Those below `name`: `scope("mlp").row("down_proj", ...)` is `mlp.down_proj`."""
        return Linears(self._weights.scope(name), self.kernels)

    def column(self, names: Sequence[str], inputs: int, outputs: Sequence[int], *, bias: bool = False) -> Linear:
        """Projections `names` of the same input to `outputs` features each, behind one another.

        They are one product: fewer, larger ones are faster. Nobody keeps the weights but the kernels.
        """
        pairs = list(zip(names, outputs, strict=True))
        parts = [self._weights.take(f"{name}.weight", size, inputs) for name, size in pairs]
        biases = torch.cat([self.vector(f"{name}.bias", size) for name, size in pairs]) if bias else None
        return _Projection(self.kernels.linear(parts, biases))

    def row(self, name: str, inputs: int, outputs: int, *, bias: bool = False) -> Linear:
        """A projection of what a `column` gave."""
        return self.column((name,), inputs, (outputs,), bias=bias)

    def vocabulary(self, name: str, rows: int, size: int, *, scale: float = 1.0) -> Vocabulary:
        """A vector of `size` for each of `rows` tokens, looked up `scale` times as long as it is stored."""
        table = self._weights.take(f"{name}.weight", rows, size).dense()
        return Vocabulary(table.to(self.kernels.device, self._weights.dtype), scale, self.kernels)

    def vector(self, name: str, size: int, *, offset: float = 0.0) -> Tensor:
        """A parameter for each feature, such as a norm's weights, plus `offset`: [size], of the activations' type."""
        vector = self._weights.take(name, size).dense().to(self.kernels.device)
        return (vector.float() + offset).to(self.kernels.dtype)
