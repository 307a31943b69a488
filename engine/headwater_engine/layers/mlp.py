"""The gated feed-forward block: down(activation(gate(x)) * up(x)) (Shazeer, 2020)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch
from headwater_engine.layers.linears import Linears

Gate = Callable[[Tensor], Tensor]
"""gate and up [T, 2 * I] -> [T, I]: activation(first half) * second half."""


class GatedMLP:
    __slots__ = ("_down", "_gate", "_gate_up")

    def __init__(
        self, linears: Linears, hidden: int, intermediate: int, *, bias: bool = False, gate: Gate | None = None
    ) -> None:
        """Without a `gate` it is SiLU, which kernels have as a part of the product."""
        own = linears.share(intermediate)
        names = ("gate_proj", "up_proj")
        if gate is None:
            self._gate_up = linears.gated(names, hidden, own, bias=bias)
        else:
            self._gate_up = linears.column(names, hidden, (own, own), bias=bias)
        self._gate = gate
        self._down = linears.row("down_proj", own, hidden, bias=bias)

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        x = self._gate_up(x, batch)
        return self._down(x if self._gate is None else self._gate(x), batch)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """A `Gate` of GELU by its tanh approximation, in plain torch: no kernel is fused for it yet."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up
