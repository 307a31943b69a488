"""What one endpoint's cache is believed to hold, in the order in which the engine lets it go.

Beside blocks of prompts there are *answers*: they take room as prompts do, but nobody knows their text before a next
turn repeats it. So an answer is one entry without a hash, behind the last block of its prompt. A prompt that goes on
from there and is longer than the answer has it within, as blocks of its own, so the entry goes. One that is not as long
as the answer goes on without it, or without the thoughts in it, which stay in the cache until their turn comes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise


class Believed:
    """Units are those of text, see `headwater.prefix`."""

    __slots__ = ("_answering", "_before", "_latest", "_names", "_tails", "entries", "units")

    def __init__(self) -> None:
        self.entries: OrderedDict[int, int] = OrderedDict()
        """Least recently used first, each with its units: blocks by their hashes, answers by names below 0."""
        self.units = 0
        """Of all entries."""
        self._answering: dict[int, Sequence[int]] = {}
        """Prompts that are being answered, by their last blocks."""
        self._latest: dict[int, int] = {}
        """Names of answers by the last blocks of their prompts: of several behind one, of the latest."""
        self._before: dict[int, int] = {}
        """The one before it behind the same block, which may be gone by now. As the oldest of all goes first, the one
        that goes is the last in such a row."""
        self._tails: dict[int, int] = {}
        """The blocks by the names. An answer to a prompt without a block is in none of these."""
        self._names = 0

    def begin(self, chain: Sequence[int]) -> None:
        """This prompt, whose blocks are entries, is being answered from now on."""
        if chain:
            self._answering[chain[-1]] = chain

    def end(self, chain: Sequence[int], units: int) -> None:
        """Its answer has ended, with so many units."""
        if chain:
            self._answering.pop(chain[-1], None)
        if units:
            self._names -= 1
            self.entries[self._names] = units
            self.units += units
            if chain:
                tail = self._tails[self._names] = chain[-1]
                if (before := self._latest.get(tail)) is not None:
                    self._before[self._names] = before
                self._latest[tail] = self._names

    def goes_on(self, tail: int, units: int) -> None:
        """A prompt goes on behind this block with so many units, and perhaps a block that is not full."""
        name = self._latest.get(tail)
        if name is not None and self.entries[name] <= units + 1:
            self.units -= self.entries.pop(name)
            self._forget(name)

    def drop(self) -> int | None:
        """Let the oldest entry go. There must be one. Gives the hash of a block.

        Engines cannot let go what they work with, so a prompt that is being answered becomes the latest instead. That
        is done once: who answers for longer than all of a cache takes to be used up twice is not worth more work.
        """
        while chain := self._answering.pop(next(iter(self.entries)), None):
            for key in reversed(chain):
                if key in self.entries:
                    self.entries.move_to_end(key)
        key, units = self.entries.popitem(last=False)
        self.units -= units
        if key >= 0:
            return key
        if key in self._tails:
            self._forget(key)
        return None

    def _forget(self, name: int) -> None:
        """The latest behind its block, or the oldest, which leaves the latest where it is."""
        tail, before = self._tails.pop(name), self._before.pop(name, None)
        if self._latest[tail] != name:
            return
        if before in self._tails:
            self._latest[tail] = before
        else:
            del self._latest[tail]

    def check(self) -> None:
        """Raises AssertionError where the tables disagree."""
        assert self.units == sum(self.entries.values())
        behind: dict[int, list[int]] = {}
        for name, tail in self._tails.items():
            behind.setdefault(tail, []).append(name)
        assert self._latest == {tail: min(names) for tail, names in behind.items()}
        for names in behind.values():
            assert all(self._before[later] == name for name, later in pairwise(sorted(names, reverse=True)))
        assert self._tails.keys() <= self.entries.keys() and self._before.keys() <= self._tails.keys()
