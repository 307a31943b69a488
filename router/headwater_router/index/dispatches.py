"""What endpoints should hold because they answered it: a prior, kept as the engine keeps its own cache.

Each holder has a list of blocks in order of use, cut at its capacity, tails before heads as in the engines. Capacity is
what the engine's cache has room for, in units of text (see `headwater.prefix`), of which deep blocks have many. What
was only sent is not here, but in `Pending`: a prompt that the engine turns down moves nothing.

All holders share one table from a block's hash to a set of holders, one bit each, so that a walk along a prompt's
chain finds the depth of every holder at once.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import Final

from headwater.prefix import ENDS

_UNITS: Final = tuple(after - before for before, after in pairwise(ENDS))
"""Of the first, second, ... block of a prompt."""
_NOTHING: Final[OrderedDict[int, int]] = OrderedDict()


class Dispatches:
    """Blocks by holder. A holder is the number of a bit; whoever asks maps it to an endpoint."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        """Block hash to the set of its holders. To be read only."""
        self._held: dict[int, OrderedDict[int, int]] = {}
        """Per holder, least recently used first, each with its units."""
        self._units: dict[int, int] = {}
        """Per holder, of all that it holds."""

    def count(self, holder: int) -> int:
        return len(self._held.get(holder, ()))

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, holder: int, chain: Sequence[int], capacity: int, room: int) -> None:
        """A prompt of these blocks was computed there. The holder keeps `capacity` units, and `room` blocks."""
        held = self._held.get(holder)
        if held is None:
            held = self._held[holder] = OrderedDict()
            self._units[holder] = 0
        bit = 1 << holder
        masks, added = self.masks, 0
        for place in range(len(chain) - 1, -1, -1):
            key = chain[place]
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = units = _UNITS[place]
                added += units
                masks[key] = masks.get(key, 0) | bit
        self._units[holder] += added
        if self._units[holder] > capacity or len(held) > room:
            self._drop(holder, held, capacity, room)

    def latest(self, holder: int, most: int) -> list[tuple[int, int]]:
        """Blocks with their units, those that were used last first."""
        return list(islice(reversed(self._held.get(holder, _NOTHING).items()), most))

    def recall(self, holder: int, blocks: Iterable[tuple[int, int]], capacity: int, room: int) -> None:
        """Somebody knew of these, those that were used last first. They count as older than what is here, which they
        push nothing of out; `capacity` and `room` are as in `add`."""
        held = self._held.setdefault(holder, OrderedDict())
        total = self._units.get(holder, 0)
        for key, units in blocks:
            units = min(max(units, 1), _UNITS[-1])
            if key not in held:
                total += units
                if total > capacity or len(held) >= room:
                    total -= units
                    break
                held[key] = units
                held.move_to_end(key, last=False)
                self.masks[key] = self.masks.get(key, 0) | 1 << holder
        self._units[holder] = total

    def trim(self, holder: int, room: int) -> None:
        held = self._held.get(holder)
        if held is not None:
            self._drop(holder, held, self._units[holder], room)

    def forget(self, holder: int) -> None:
        self.trim(holder, 0)
        self._held.pop(holder, None)
        self._units.pop(holder, None)

    def _drop(self, holder: int, held: OrderedDict[int, int], capacity: int, room: int) -> None:
        while held and (self._units[holder] > capacity or len(held) > room):
            key, units = held.popitem(last=False)
            self._units[holder] -= units
            unmask(self.masks, key, 1 << holder)

    def check(self) -> None:
        """Raises AssertionError if the table and the holders' lists say different things."""
        rebuilt: dict[int, int] = {}
        for holder, held in self._held.items():
            assert self._units[holder] == sum(held.values())
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
