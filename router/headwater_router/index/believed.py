"""What one endpoint's cache is believed to hold, in the order in which the engine lets it go.

Beside blocks of prompts there are *answers*: they take room as prompts do, but nobody knows their text before a next
turn repeats it. So an answer is one entry without a hash, behind the last block of its prompt. A prompt that goes on
from there and is longer than the answer has it within, as blocks of its own, so the entry goes. One that is not as long
as the answer goes on without it, or without the thoughts in it, which stay in the cache until their turn comes.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence


class Believed:
    """Units are those of text, see `headwater.prefix`."""

    __slots__ = ("_answering", "_behind", "_names", "_tails", "entries", "units")

    def __init__(self) -> None:
        self.entries: OrderedDict[int, int] = OrderedDict()
        """Least recently used first, each with its units: blocks by their hashes, answers by names below 0."""
        self.units = 0
        """Of all entries."""
        self._answering: dict[int, Sequence[int]] = {}
        """Prompts that are being answered, by their last blocks."""
        self._behind: dict[int, deque[int]] = {}
        """Names of answers by the last blocks of their prompts, the oldest first."""
        self._tails: dict[int, int] = {}
        """The other way round. An answer to a prompt without a block is in neither."""
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
                self._behind.setdefault(chain[-1], deque()).append(self._names)
                self._tails[self._names] = chain[-1]

    def goes_on(self, tail: int, units: int) -> None:
        """A prompt goes on behind this block with so many units, and perhaps a block that is not full."""
        names = self._behind.get(tail)
        if names and self.entries[names[-1]] <= units + 1:
            self.units -= self.entries.pop(names[-1])
            self._forget(names.pop())

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
            self._behind[self._tails[key]].popleft()
            self._forget(key)
        return None

    def _forget(self, name: int) -> None:
        tail = self._tails.pop(name)
        if not self._behind[tail]:
            del self._behind[tail]

    def check(self) -> None:
        """Raises AssertionError where the tables disagree."""
        assert self.units == sum(self.entries.values())
        assert self._tails == {name: tail for tail, names in self._behind.items() for name in names}
        assert all(name in self.entries for name in self._tails)
        assert all(list(names) == sorted(names, reverse=True) for names in self._behind.values())
