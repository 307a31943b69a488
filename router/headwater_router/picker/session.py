"""A session stays on its endpoint: consistent hashing of a header's value, with bounded loads.

Each endpoint stands at 64 places of a ring, which are hashes of its id; a session belongs to the next endpoint after
its own hash (Karger et al., 1997). When an endpoint comes or goes, only the sessions that it wins or held move. The
bound (Mirrokni, Thorup and Zadimoghaddam, 2016) passes over an endpoint that has more than 1.25 times the mean load;
the next on the ring takes the request, the same next every time. A request without the header goes to the least loaded.

The ring is made when the endpoints change. The mean is counted once in so many requests that it can have changed by an
eighth of a request, no more: both so that a decision does not cost more the more endpoints there are.
"""

import math
import random
from bisect import bisect
from collections.abc import Collection, Iterator
from typing import Final

from xxhash import xxh3_64_intdigest

from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.least_loaded import LeastLoadedPicker
from headwater_router.picker.objective import Objective
from headwater_router.picker.targets import Targets

LOAD_BOUND: Final = 1.25
_POINTS: Final = 64
_PLACE_BITS: Final = 20
_PLACE: Final = (1 << _PLACE_BITS) - 1
_LOOK: Final = 16
"""Endpoints that are asked for room before the least loaded of them has to do."""


class _Ring:
    __slots__ = ("_left", "_points", "_targets", "_total")

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self._targets = targets
        self._points: list[int] = []
        """Hashes, each with its target's place below it: as plain numbers they are sorted in milliseconds."""
        for place, target in enumerate(targets):
            name = target.id.encode()
            self._points += [xxh3_64_intdigest(name, number) << _PLACE_BITS | place for number in range(_POINTS)]
        self._points.sort()
        self._total = self._left = 0

    def after(self, point: int) -> Iterator[Target]:
        """All targets in the order in which they come after that point."""
        points = self._points
        start = bisect(points, point << _PLACE_BITS)
        seen = set()
        for number in range(start, start + len(points)):
            place = points[number % len(points)] & _PLACE
            if place not in seen:
                seen.add(place)
                yield self._targets[place]

    def bound(self, excluded: int) -> int:
        """Requests that an endpoint may have. `excluded`: how many take no part."""
        if not self._left:
            self._left = max(1, len(self._targets) // 8)
            self._total = sum(target.load.in_flight + target.load.penalty for target in self._targets)
        self._left -= 1
        return math.ceil(LOAD_BOUND * (self._total + 1) / max(len(self._targets) - excluded, 1))


class SessionPicker(LeastLoadedPicker):
    """Needs nothing but the endpoints' ids, so all replicas of a router agree without talking."""

    def choose(self, prompt: Prompt, targets: Targets, excluded: Collection[str]) -> Target:
        if prompt.session is None:
            return super().choose(prompt, targets, excluded)
        ring = targets.view
        if not isinstance(ring, _Ring):
            ring = targets.view = _Ring(targets.all)
        bound = ring.bound(len(excluded))
        asked: list[Target] = []
        for target in ring.after(xxh3_64_intdigest(prompt.session.encode("utf-8", "surrogatepass"))):
            if target.id not in excluded:
                if target.load.in_flight + target.load.penalty < bound:
                    return target
                asked.append(target)
                if len(asked) == _LOOK:
                    break
        if not asked:
            raise ValueError("there is no target to pick, or all are excluded")
        return min(asked, key=lambda target: target.load.in_flight + target.load.penalty)


def make(index: PrefixIndex, rng: random.Random, objective: Objective) -> SessionPicker:
    return SessionPicker(rng)
