"""What endpoints should hold because of what we sent them: a prior, kept as the engine keeps its own cache.

Each holder has a list of blocks in order of use, cut at its capacity, tails before heads as in the engines. A block
that was dispatched but not answered yet counts for a short time only; the answer makes it lasting.

All holders share one table from a block's hash to a set of holders, one bit each, so that a walk along a prompt's
chain finds the depth of every holder at once.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

_LASTING: Final = math.inf


class Dispatches:
    """Blocks by holder. A holder is the number of a bit; whoever asks maps it to an endpoint."""

    def __init__(self, unconfirmed_ttl: float) -> None:
        self.masks: dict[int, int] = {}
        """Block hash to the set of its holders. To be read only, and together with `live_depth`."""
        self._ttl = unconfirmed_ttl
        self._held: dict[int, OrderedDict[int, float]] = {}
        """Per holder: block hash to the time when it stops to count; least recently used first."""

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, holder: int, chain: Sequence[int], now: float, capacity: int) -> None:
        """A prompt of these blocks was sent there; `capacity` blocks are how many the holder keeps."""
        self._touch(holder, chain, now + self._ttl, capacity)

    def confirm(self, holder: int, chain: Sequence[int], capacity: int) -> None:
        """It was answered, so its blocks are there."""
        self._touch(holder, chain, _LASTING, capacity)

    def withdraw(self, holder: int, chain: Sequence[int]) -> None:
        """It came to nothing: drop those of its blocks that no answer confirmed."""
        held = self._held.get(holder)
        if held is not None:
            self.discard(holder, [key for key in chain if held.get(key, _LASTING) != _LASTING])

    def discard(self, holder: int, keys: Sequence[int]) -> None:
        held = self._held.get(holder)
        if held is not None:
            for key in keys:
                if held.pop(key, None) is not None:
                    self._unmask(key, 1 << holder)

    def live_depth(self, holder: int, chain: Sequence[int], depth: int, now: float) -> int:
        """How many of the first `depth` blocks, all of which the table shows, still count."""
        held = self._held[holder]
        # A head is used whenever its tail is, so what is stale is at the end.
        while depth and held[chain[depth - 1]] <= now:
            self.discard(holder, (chain[depth - 1],))
            depth -= 1
        return depth

    def trim(self, holder: int, capacity: int) -> None:
        held = self._held.get(holder)
        if held is not None:
            while len(held) > capacity:
                self._unmask(held.popitem(last=False)[0], 1 << holder)

    def forget(self, holder: int) -> None:
        self.trim(holder, 0)
        self._held.pop(holder, None)

    def check(self) -> None:
        """Raises AssertionError if the table and the holders' lists say different things."""
        rebuilt: dict[int, int] = {}
        for holder, held in self._held.items():
            for key in held:
                rebuilt[key] = rebuilt.get(key, 0) | 1 << holder
        assert rebuilt == self.masks

    def _touch(self, holder: int, chain: Sequence[int], until: float, capacity: int) -> None:
        held = self._held.get(holder)
        if held is None:
            held = self._held[holder] = OrderedDict()
        bit = 1 << holder
        masks = self.masks
        for key in reversed(chain):
            known = held.get(key)
            if known is None:
                held[key] = until
                masks[key] = masks.get(key, 0) | bit
            else:
                held.move_to_end(key)
                if known < until:
                    held[key] = until
        if len(held) > capacity:
            self.trim(holder, capacity)

    def _unmask(self, key: int, bit: int) -> None:
        left = self.masks[key] & ~bit
        if left:
            self.masks[key] = left
        else:
            del self.masks[key]
