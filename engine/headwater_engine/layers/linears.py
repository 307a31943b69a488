"""Where layers get their products with weights, and the one place where rank, quantization and adapter may meet.

A layer says what it projects: by name, from so many features to so many. What it gets is a `Linear`, and whatever else
there is to it stays in here. In this order, wherever a part of it exists:

    y = product(x)         by weights as the kernels pack them, of what this rank has of them
    y += delta(x, batch)   of each token's own adapter, by this rank's part of it
    y = sum over ranks     where the inputs are shared among them (`row`)
    y += bias              once

So far there are the product and the sum, and the bias is in the product: of a `row`, in that of the first rank. Weights
are expanded as they load, and there are no adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.distributed.shares import Share, share, share_heads
from headwater_engine.kernels.interface import AttentionBatch, Kernels, Product
from headwater_engine.layers.embedding import Vocabulary
from headwater_engine.layers.weights import Weights
from headwater_engine.quantization.stored import StoredWeight


class Linear(Protocol):
    """A projection with everything that belongs to it."""

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        """[T, inputs] -> [T, outputs]; `batch` says which request each of the T tokens is of."""


@dataclass(frozen=True, slots=True)
class _Column:
    product: Product

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        return self.product(x)


@dataclass(frozen=True, slots=True)
class _Row:
    product: Product
    ranks: Ranks

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        return self.ranks.sum(self.product(x))


class Linears:
    """Parameters below one prefix of a checkpoint, as layers use them. All methods raise LoadError."""

    def __init__(self, weights: Weights, kernels: Kernels, ranks: Ranks = ALONE) -> None:
        self.kernels = kernels
        self._weights = weights
        self._ranks = ranks

    def scope(self, name: str) -> "Linears":
        """Those below `name`: `scope("mlp").row("down_proj", ...)` is `mlp.down_proj`."""
        return Linears(self._weights.scope(name), self.kernels, self._ranks)

    def share(self, count: int) -> Share:
        """Which of `count` features are computed here, between a `column` and a `row`."""
        return share(count, self._ranks.rank, self._ranks.size)

    def share_heads(self, queries: int, keys: int) -> tuple[Share, Share]:
        """Which heads of queries, and which of keys and values."""
        return share_heads(queries, keys, self._ranks.rank, self._ranks.size)

    def column(self, names: Sequence[str], inputs: int, outputs: Sequence[Share], *, bias: bool = False) -> Linear:
        """Projections `names` of the same input to `outputs` features each, behind one another: of a weight, some rows.

        They are one product: fewer, larger ones are faster. Nobody keeps the weights but the kernels.
        """
        return _Column(self.kernels.linear(*self._parts(names, inputs, outputs, bias)))

    def gated(self, names: tuple[str, str], inputs: int, outputs: Share, *, bias: bool = False) -> Linear:
        """silu(gate) * up, of projections `names` of the same input to `outputs` features each: a `column`, too."""
        (gate, up), biases = self._parts(names, inputs, (outputs, outputs), bias)
        return _Column(self.kernels.gated(gate, up, biases))

    def _parts(
        self, names: Sequence[str], inputs: int, outputs: Sequence[Share], bias: bool
    ) -> tuple[list[StoredWeight], Tensor | None]:
        """What this rank has of projections `names`: of each its weight, and of all their biases."""
        pairs = list(zip(names, outputs, strict=True))
        parts = [self._weights.take(f"{name}.weight", own.whole, inputs).cut(0, own.span) for name, own in pairs]
        biases = [self.vector(f"{name}.bias", own.whole)[own.span] for name, own in pairs if bias]
        return parts, torch.cat(biases) if bias else None

    def row(self, name: str, inputs: Share, outputs: int, *, bias: bool = False) -> Linear:
        """A projection of the features that a `column` gave, to all `outputs`: of a weight, some columns."""
        part = self._weights.take(f"{name}.weight", outputs, inputs.whole).cut(1, inputs.span)
        biases = self.vector(f"{name}.bias", outputs) if bias else None
        product = self.kernels.linear([part], biases if self._ranks.rank == 0 else None)
        return _Row(product, self._ranks) if self._ranks.size > 1 else _Column(product)

    def has(self, name: str) -> bool:
        """Whether the checkpoint itself holds a weight of that name."""
        return self._weights.has(f"{name}.weight")

    def vocabulary(self, name: str, rows: int, size: int, *, scale: float = 1.0) -> Vocabulary:
        """A vector of `size` for each of `rows` tokens, looked up `scale` times as long as it is stored.

        All ranks have as many of them: of a number that does not divide, the last have rows of zeros, too.
        """
        each = -(-rows // self._ranks.size)
        start = min(rows, self._ranks.rank * each)
        stored = self._weights.take(f"{name}.weight", rows, size).cut(0, slice(start, min(rows, start + each)))
        table = stored.dense().to(self.kernels.device, self._weights.dtype)
        if len(table) < each:
            table = F.pad(table, (0, 0, 0, each - len(table)))
        elif self._ranks.size > 1:
            table = table.clone()  # it may be a view, which would keep the parts of all ranks in memory
        return Vocabulary(table, scale, self.kernels, self._ranks)

    def table(self, name: str, rows: int, size: int) -> Tensor:
        """A parameter that is plain numbers to all: [rows, size], of the activations' type."""
        return self._weights.take(name, rows, size).dense().to(self.kernels.device, self.kernels.dtype)

    def vector(self, name: str, size: int, *, offset: float = 0.0) -> Tensor:
        """A parameter for each feature, such as a norm's weights, plus `offset`: [size], of the activations' type."""
        vector = self._weights.take(name, size).dense().to(self.kernels.device)
        return (vector.float() + offset).to(self.kernels.dtype)
