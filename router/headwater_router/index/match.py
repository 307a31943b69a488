"""Who holds how much of a prompt: the answer of one walk along its chain for all endpoints at once."""

import random
from collections.abc import Mapping, Sequence


class Match:
    """Sets of holders are the bits of an int. A holder is the number of a bit; whoever asks maps it to an endpoint."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Sequence[tuple[int, int]]) -> None:
        """`steps`: depths, rising, each with those who hold at least so many leading blocks."""
        self._steps = steps

    @property
    def longest(self) -> int:
        """Leading blocks that anybody should hold."""
        return self._steps[-1][0] if self._steps else 0

    def depth(self, holder: int) -> int:
        """Leading blocks that this one should hold."""
        found = 0
        bit = 1 << holder
        for depth, holders in self._steps:
            if not holders & bit:
                break
            found = depth
        return found

    def deepest(self, among: int, most: int, rng: random.Random) -> list[int]:
        """At most so many of those who hold the longest beginnings; where more hold the same, some by chance."""
        found: list[int] = []
        for _, holders in reversed(self._steps):
            holders &= among
            among ^= holders
            while holders:
                if len(found) == most:
                    return found
                # Where not all have room, the next one from a random bit on. There is one: the highest is set.
                skipped = int(rng.random() * holders.bit_length()) if holders.bit_count() > most - len(found) else 0
                ahead = holders >> skipped
                holder = (ahead & -ahead).bit_length() - 1 + skipped
                found.append(holder)
                holders ^= 1 << holder
        return found


NOTHING = Match(())
"""Nobody holds anything, as of most new prompts: it is the only one that says so."""


def walk(chain: Sequence[int], known: Mapping[int, int], expected: Mapping[int, int]) -> Match:
    """Along the blocks while anybody holds them, for sure (`known`) or perhaps (`expected`)."""
    steps: list[tuple[int, int]] = []
    known_by, expected_of = known.get, expected.get
    alive, depth = -1, 0
    for key in chain:
        holders = alive & known_by(key, 0)
        if holders != alive:
            holders |= alive & expected_of(key, 0)
            if holders != alive:
                if depth:
                    steps.append((depth, alive))
                if not holders:
                    return Match(steps) if steps else NOTHING
                alive = holders
        depth += 1
    if depth:
        steps.append((depth, alive))
    return Match(steps) if steps else NOTHING
