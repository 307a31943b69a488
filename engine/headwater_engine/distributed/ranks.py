"""What the ranks of a model say to one another while they compute.

A model that is shared among ranks runs as one process for each of them, with the same steps in the same order. Each has
a part of every large weight; what they compute comes together in these calls, which all ranks make alike.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from headwater_engine.distributed.losses import losses_named


class Ranks(Protocol):
    rank: int
    """Of this process, from 0 on. The first one samples where all logits are needed for it."""
    size: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x` of one shape, in place."""

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' `x` [R, n] side by side, in their order: [R, n * size] on the first, no rows on the others."""

    def exchange(self, x: Tensor) -> Tensor:
        """All ranks' `x` of one shape, in their order: [size, ...] on each of them."""

    def tell(self, x: Tensor) -> Tensor:
        """The first rank's `x`, in place of the others' `x` of its shape and type."""

    def least(self, number: int) -> int:
        """The least of all ranks' numbers. None goes on before all have asked."""


class Alone:
    """One rank, which has everything."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x

    def exchange(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def tell(self, x: Tensor) -> Tensor:
        return x

    def least(self, number: int) -> int:
        return number


ALONE = Alone()


class ProcessRanks:
    """The processes of a group of torch.distributed, which is there already: of gloo on CPUs, of NCCL on GPUs.

    All calls raise LostRankError where another rank leaves while they wait for it, as far as they notice.
    """

    def __init__(self, device: torch.device | None = None, store: object = None) -> None:
        """`device` has the tensors that are shared. None: main memory. `store`: what torch calls, and does not keep."""
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = device
        self._store = store

    @losses_named()
    def sum(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    @losses_named()
    def gather(self, x: Tensor) -> Tensor:
        if self.rank:
            dist.gather(x.contiguous())
            return x.new_empty(0, x.shape[1] * self.size)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.gather(x.contiguous(), parts)
        return torch.cat(parts, dim=1)

    @losses_named()
    def exchange(self, x: Tensor) -> Tensor:
        everything = x.new_empty(self.size, *x.shape)
        dist.all_gather_into_tensor(everything.view(-1), x.reshape(-1))
        return everything

    @losses_named()
    def tell(self, x: Tensor) -> Tensor:
        dist.broadcast(x, src=0)
        return x

    @losses_named()
    def least(self, number: int) -> int:
        numbers = torch.tensor([number], device=self._device)
        dist.all_reduce(numbers, dist.ReduceOp.MIN)
        return int(numbers)
