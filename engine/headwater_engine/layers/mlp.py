"""The gated feed-forward block: down(silu(gate(x)) * up(x)) (Shazeer, 2020)."""

from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch
from headwater_engine.layers.linears import Linears


class GatedMLP:
    __slots__ = ("_down", "_gate_up", "_kernels")

    def __init__(self, linears: Linears, hidden: int, intermediate: int, *, bias: bool) -> None:
        self._gate_up = linears.column(("gate_proj", "up_proj"), hidden, (intermediate, intermediate), bias=bias)
        self._down = linears.row("down_proj", intermediate, hidden, bias=bias)
        self._kernels = linears.kernels

    def __call__(self, x: Tensor, batch: AttentionBatch) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self._down(self._kernels.silu_mul(self._gate_up(x, batch)), batch)
