"""KV memory of a modelled engine: blocks of prefixes that requests share, and what each has for itself.

A block is used by so many requests, or by none and kept until its room is wanted, the longest unused one first, tails
before heads. Counted in tokens.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

BLOCK: Final = 64
"""Tokens of a block. Engines have 16: what is cached is known to within a per cent of a long prompt here, and a run
takes a quarter of the time."""
BYTES: Final = 4
"""Bytes of the streams of requests that stand for a token."""


def chain_of(adapter: str, stream: bytes) -> list[int]:
    """A hash for each full block, which stands for all up to there."""
    parent = xxh3_64_intdigest(adapter.encode())
    view, size, hashes = memoryview(stream), BLOCK * BYTES, []
    for start in range(0, len(stream) - size + 1, size):
        parent = xxh3_64_intdigest(view[start : start + size], parent)
        hashes.append(parent)
    return hashes


class Memory:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._used: dict[int, int] = {}
        """Block to the number of requests that use it."""
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Blocks that nobody uses, the longest unused first."""
        self._own = 0
        """Tokens of requests outside of full blocks of their prompts."""

    @property
    def taken(self) -> int:
        """Tokens that cannot be let go."""
        return BLOCK * len(self._used) + self._own

    @property
    def usage(self) -> float:
        return self.taken / self.tokens

    @property
    def left(self) -> int:
        return self.tokens - self.taken

    def holds(self, key: int) -> bool:
        return key in self._used or key in self._kept

    def take(self, chain: Sequence[int], tokens: int) -> int | None:
        """A request of so many tokens begins, whose full blocks are `chain`. Returns how many of them are there
        already; None: there is no room for it now."""
        matched = sum(1 for _ in self._leading(chain))
        needed = sum(1 for key in chain if key not in self._used) * BLOCK + tokens - BLOCK * len(chain)
        if needed > self.left and self.taken:
            return None
        for key in chain:
            self._kept.pop(key, None)
            self._used[key] = self._used.get(key, 0) + 1
        self._own += tokens - BLOCK * len(chain)
        self._make_room()
        return min(BLOCK * matched, tokens - 1)

    def grow(self, tokens: int) -> None:
        self._own += tokens
        self._make_room()

    def release(self, chain: Sequence[int], own: int, computed: Sequence[int] = ()) -> None:
        """A request ends which has so many tokens outside of the blocks of `chain`. `computed`: full blocks of
        these."""
        self._own -= own
        for key in reversed(computed):
            if key not in self._used:
                self._keep(key)
        for key in reversed(chain):
            count = self._used[key]
            if count == 1:
                del self._used[key]
                self._keep(key)
            else:
                self._used[key] = count - 1
        self._make_room()

    def _leading(self, chain: Sequence[int]) -> Iterator[int]:
        for key in chain:
            if not self.holds(key):
                return
            yield key

    def _keep(self, key: int) -> None:
        self._kept[key] = None
        self._kept.move_to_end(key)

    def _make_room(self) -> None:
        room = self.left // BLOCK
        while len(self._kept) > max(room, 0):
            self._kept.popitem(last=False)
