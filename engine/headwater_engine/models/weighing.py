"""What a rank would have of a model, known before a byte of its weights is read.

The model is built as it will be, of tensors that have a shape and no numbers. So whoever decides what a rank has of a
weight, and what is kept once, is who decides it in earnest, and there is no arithmetic beside it that could be wrong.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater_engine.distributed.ranks import Ranks
from headwater_engine.kernels.interface import CacheSpec
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.checkpoint import SafetensorsCheckpoint, open_checkpoint
from headwater_engine.models.loading import load_model, native_family
from headwater_engine.models.pooled import load_pooled
from headwater_engine.models.pooling import PoolingPlan
from headwater_engine.models.source import ModelFolder, read_config
from headwater_engine.quantization.stored import StoredWeight

_NOWHERE = torch.device("meta")


class _Weightless(TorchKernels):
    device = _NOWHERE


class _Scale:
    """A checkpoint that counts what is taken of its tensors; it makes up all that it is asked for."""

    def __init__(self) -> None:
        self.numbers = 0

    def names(self) -> Collection[str]:
        return ()

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        return _Weighed(torch.empty(shape, device=_NOWHERE), self)


@dataclass(frozen=True, slots=True)
class _Weighed(StoredWeight):
    scale: _Scale

    def cut(self, dim: int, span: slice) -> StoredWeight:
        return _Weighed(self.tensor.narrow(dim, span.start, span.stop - span.start), self.scale)

    def dense(self) -> Tensor:
        """Which is asked for once, when all that others have is cut off."""
        self.scale.numbers += self.tensor.numel()
        return self.tensor


def weigh(
    folder: ModelFolder, plan: PoolingPlan | None, *, dtype: torch.dtype, ranks: Ranks
) -> tuple[int, Sequence[CacheSpec]]:
    """Bytes of this rank's weights, if they are kept in `dtype`, and what its layers keep of each token.

    Of a model that runs by the modules of transformers only the first is known before it is loaded. Raises LoadError.
    """
    if (plan is None or not plan.encoder) and native_family(read_config(folder)) is None:
        checkpoint = open_checkpoint(folder)
        if not isinstance(checkpoint, SafetensorsCheckpoint):  # which is made up, and small
            return 0, ()
        return checkpoint.numbers_by_type().total() * dtype.itemsize, ()
    scale, kernels = _Scale(), _Weightless(dtype)
    if plan is None:
        caches = load_model(folder, kernels=kernels, ranks=ranks, checkpoint=scale).config.caches
    else:
        caches = load_pooled(folder, plan, kernels=kernels, ranks=ranks, checkpoint=scale)[0].config.caches
    return scale.numbers * dtype.itemsize, caches
