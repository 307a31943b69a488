"""The gated feed-forward block: down(silu(gate(x)) * up(x)) (Shazeer, 2020)."""

from torch import Tensor

from headwater_engine.kernels.interface import Kernels
from headwater_engine.layers.linear import load_linear
from headwater_engine.layers.weights import Weights


class GatedMLP:
    __slots__ = ("_down", "_gate_up", "_kernels")

    def __init__(self, weights: Weights, hidden: int, intermediate: int, kernels: Kernels, *, bias: bool) -> None:
        gate_up = ("gate_proj", "up_proj")
        self._gate_up = load_linear(weights, gate_up, hidden, (intermediate, intermediate), kernels, bias=bias)
        self._down = load_linear(weights, ("down_proj",), intermediate, (hidden,), kernels, bias=bias)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self._down(self._kernels.silu_mul(self._gate_up(x)))
