"""What endpoints should hold because they answered it: a prior, kept as the engine keeps its own cache.

Each holder has a list in order of use (`Believed`), cut at its capacity, tails before heads as in the engines. Capacity
is what the engine's cache has room for, in units of text (see `headwater.prefix`), of which deep blocks have many.
Answers take room, too, and with their prompts are used until they end. What was only sent is not here, but in
`Pending`: a prompt that the engine turns down moves nothing.

All holders share one table from a block's hash to a set of holders, one bit each, so that a walk along a prompt's
chain finds the depth of every holder at once.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import Final

from headwater.prefix import ENDS
from headwater_router.index.believed import Believed

_UNITS: Final = tuple(after - before for before, after in pairwise(ENDS))
"""Of the first, second, ... block of a prompt."""


class Dispatches:
    """Blocks by holder. A holder is the number of a bit; whoever asks maps it to an endpoint."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        """Block hash to the set of its holders. To be read only."""
        self._caches: defaultdict[int, Believed] = defaultdict(Believed)

    def count(self, holder: int) -> int:
        cache = self._caches.get(holder)
        return 0 if cache is None else len(cache.entries)

    def __len__(self) -> int:
        return sum(len(cache.entries) for cache in self._caches.values())

    def begun(self, holder: int, chain: Sequence[int], capacity: int, room: int) -> None:
        """A prompt of these blocks was computed there, and is being answered. The rest is as in `add`."""
        self.add(holder, chain, capacity, room)
        self._caches[holder].begin(chain)

    def ended(self, holder: int, chain: Sequence[int], units: int, capacity: int, room: int) -> None:
        """Its answer has ended, with so many units. Prompt and answer are now what was used last, tails before heads.
        The rest is as in `add`."""
        self._caches[holder].end(chain, units)
        self.add(holder, chain, capacity, room)

    def add(self, holder: int, chain: Sequence[int], capacity: int, room: int) -> None:
        """A prompt of these blocks was computed there. The holder keeps `capacity` units, and `room` entries."""
        cache = self._caches[holder]
        entries, bit = cache.entries, 1 << holder
        masks, added, new = self.masks, 0, 0
        for place in range(len(chain) - 1, -1, -1):
            key = chain[place]
            if key in entries:
                entries.move_to_end(key)
            else:
                entries[key] = units = _UNITS[place]
                added += units
                new += 1
                masks[key] = masks.get(key, 0) | bit
        cache.units += added
        if 0 < new < len(chain):
            cache.goes_on(chain[-new - 1], added)
        if cache.units > capacity or len(entries) > room:
            self._drop(holder, cache, capacity, room)

    def latest(self, holder: int, most: int) -> list[tuple[int, int]]:
        """Blocks with their units, those that were used last first."""
        cache = self._caches.get(holder)
        if cache is None:
            return []
        return list(islice((item for item in reversed(cache.entries.items()) if item[0] >= 0), most))

    def recall(self, holder: int, blocks: Iterable[tuple[int, int]], capacity: int, room: int) -> None:
        """Somebody knew of these, those that were used last first. They count as older than what is here, which they
        push nothing of out; `capacity` and `room` are as in `add`."""
        cache = self._caches[holder]
        entries = cache.entries
        for key, units in blocks:
            units = min(max(units, 1), _UNITS[-1])
            if key not in entries:
                if cache.units + units > capacity or len(entries) >= room:
                    break
                cache.units += units
                entries[key] = units
                entries.move_to_end(key, last=False)
                self.masks[key] = self.masks.get(key, 0) | 1 << holder

    def trim(self, holder: int, room: int) -> None:
        cache = self._caches.get(holder)
        if cache is not None:
            self._drop(holder, cache, cache.units, room)

    def forget(self, holder: int) -> None:
        self.trim(holder, 0)
        self._caches.pop(holder, None)

    def _drop(self, holder: int, cache: Believed, capacity: int, room: int) -> None:
        while cache.entries and (cache.units > capacity or len(cache.entries) > room):
            if (key := cache.drop()) is not None:
                unmask(self.masks, key, 1 << holder)

    def check(self) -> None:
        """Raises AssertionError if the table and the holders' lists say different things."""
        rebuilt: dict[int, int] = {}
        for holder, cache in self._caches.items():
            cache.check()
            for key in cache.entries:
                if key >= 0:
                    rebuilt[key] = rebuilt.get(key, 0) | 1 << holder
        assert rebuilt == self.masks


def unmask(masks: dict[int, int], key: int, bit: int) -> None:
    """Take one holder out of the set of a block that it is in."""
    left = masks[key] & ~bit
    if left:
        masks[key] = left
    else:
        del masks[key]
