"""RMS normalisation (Zhang and Sennrich, 2019), alone or fused with the addition to the residual stream."""

from torch import Tensor

from headwater_engine.layers.linears import Linears


class RMSNorm:
    """x / rms(x) * weight, over the last dimension."""

    __slots__ = ("_eps", "_kernels", "_weight")

    def __init__(self, linears: Linears, name: str, size: int, eps: float, *, offset: float = 0.0) -> None:
        """`offset` is added to the weights: some models store what they differ from one."""
        self._weight = linears.vector(f"{name}.weight", size, offset=offset)
        self._eps = eps
        self._kernels = linears.kernels

    def __call__(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return self._kernels.rms_norm(x, self._weight, self._eps)

    def add(self, x: Tensor | None, residual: Tensor) -> Tensor:
        """residual += x, in place, where there is an x; the new residual, normalised. [T, size]."""
        if x is None:
            return self(residual)
        return self._kernels.add_rms_norm(x, residual, self._weight, self._eps)
