"""Linear layers. Projections of the same input are fused into one product: fewer, larger ones are faster."""

from collections.abc import Sequence

import torch

from headwater_engine.kernels.interface import Kernels, Linear
from headwater_engine.layers.weights import Weights


def load_linear(
    weights: Weights, names: Sequence[str], inputs: int, outputs: Sequence[int], kernels: Kernels, *, bias: bool = False
) -> Linear:
    """The projections `names` of `inputs` features to `outputs` each, behind one another in one product.

    Nothing here keeps the weight: the kernels own it, packed as they like.
    """
    pairs = list(zip(names, outputs, strict=True))
    joined = torch.cat([weights.take(f"{name}.weight", size, inputs) for name, size in pairs])
    if not bias:
        return kernels.linear(joined)
    return kernels.linear(
        joined, torch.cat([weights.take(f"{name}.bias", size, dtype=kernels.dtype) for name, size in pairs])
    )
