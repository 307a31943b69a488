"""A weight in the form in which its checkpoint stores it, until kernels pack it.

That is a tensor of numbers in all checkpoints that we read: GGUF's blocks of few bits are expanded as they are read. A
form that stays packed (fp8, groups of four bits) becomes a class beside this one with the same three members. Kernels
that know the class take it as it is; all others ask it for `dense`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """[outputs, inputs]; or a vector, of a bias or a norm. Of a mapped file, nothing is read before `dense` is used."""

    tensor: Tensor
    """Of any type."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def cut(self, dim: int, span: slice) -> "StoredWeight":
        """Only `span` of the dimension `dim`: what one rank has of it."""
        return StoredWeight(self.tensor.narrow(dim, span.start, span.stop - span.start))

    def dense(self) -> Tensor:
        """The numbers; possibly a view of the checkpoint's file."""
        return self.tensor


def join(parts: Sequence[StoredWeight], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The outputs of all parts behind one another."""
    pieces = [part.dense().to(device, dtype) for part in parts]
    # On a CPU one piece alone is copied, too: it may be a view of a file, whose pages the system may take away.
    return pieces[0] if len(pieces) == 1 and device.type != "cpu" else torch.cat(pieces)
