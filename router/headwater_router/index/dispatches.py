"""What endpoints should hold because they answered it: a prior, kept as the engine keeps its own cache.

Each holder has a list of blocks in order of use, cut at its capacity, tails before heads as in the engines. What was
only sent is not here, but in `Pending`: a prompt that the engine turns down moves nothing.

All holders share one table from a block's hash to a set of holders, one bit each, so that a walk along a prompt's
chain finds the depth of every holder at once.
"""

from collections import OrderedDict
from collections.abc import Sequence


class Dispatches:
    """Blocks by holder. A holder is the number of a bit; whoever asks maps it to an endpoint."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        """Block hash to the set of its holders. To be read only."""
        self._held: dict[int, OrderedDict[int, None]] = {}
        """Per holder, least recently used first."""

    def count(self, holder: int) -> int:
        return len(self._held.get(holder, ()))

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, holder: int, chain: Sequence[int], capacity: int) -> None:
        """A prompt of these blocks was computed there; `capacity` blocks are how many the holder keeps."""
        held = self._held.get(holder)
        if held is None:
            held = self._held[holder] = OrderedDict()
        bit = 1 << holder
        masks = self.masks
        for key in reversed(chain):
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = None
                masks[key] = masks.get(key, 0) | bit
        if len(held) > capacity:
            self.trim(holder, capacity)

    def trim(self, holder: int, capacity: int) -> None:
        held = self._held.get(holder)
        if held is not None:
            while len(held) > capacity:
                unmask(self.masks, held.popitem(last=False)[0], 1 << holder)

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


def unmask(masks: dict[int, int], key: int, bit: int) -> None:
    """Take one holder out of the set of a block that it is in."""
    left = masks[key] & ~bit
    if left:
        masks[key] = left
    else:
        del masks[key]
