"""Tells on the lifeline which sum of a step this rank is at, and whether it waits there for others.

Ranks make the same calls in the same order. So one that has begun fewer than another is behind, and who is behind and
does nothing keeps all others waiting for ever (`group.py`).
"""

from collections.abc import Callable

from torch import Tensor

from headwater_engine.distributed.lifeline import Lifeline
from headwater_engine.distributed.ranks import Ranks


class CountedRanks:
    """The same ranks. On CPUs, where a call lasts until others have made it; a GPU only queues it."""

    def __init__(self, ranks: Ranks, lifeline: Lifeline) -> None:
        self.rank, self.size = ranks.rank, ranks.size
        self._ranks = ranks
        self._lifeline = lifeline

    def sum(self, x: Tensor) -> Tensor:
        return self._counted(self._ranks.sum, x)

    def gather(self, x: Tensor) -> Tensor:
        return self._counted(self._ranks.gather, x)

    def exchange(self, x: Tensor) -> Tensor:
        return self._counted(self._ranks.exchange, x)

    def tell(self, x: Tensor) -> Tensor:
        return self._counted(self._ranks.tell, x)

    def least(self, number: int) -> int:
        """Not counted: it is for when they load."""
        return self._ranks.least(number)

    def _counted(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self._lifeline.begin_sum()
        found = call(x)
        self._lifeline.end_sum()
        return found
