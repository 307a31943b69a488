"""The endpoint with the fewest requests, of several at random."""

import random
from collections.abc import Collection

from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.counting import CountingPicker
from headwater_router.picker.objective import Objective
from headwater_router.picker.targets import Targets, one_of


class LeastLoadedPicker(CountingPicker):
    """Counts only what this router sent, and what was turned down lately: gauges of the engines are seconds old, and a
    burst would follow them."""

    def choose(self, prompt: Prompt, targets: Targets, excluded: Collection[str]) -> Target:
        compared = targets.some(self.rng, excluded)
        counts = [target.load.in_flight + target.load.penalty for target in compared]
        fewest = min(counts)
        best = [target for target, count in zip(compared, counts, strict=True) if count == fewest]
        return best[0] if len(best) == 1 else one_of(self.rng, best)


def make(index: PrefixIndex, rng: random.Random, objective: Objective) -> LeastLoadedPicker:
    return LeastLoadedPicker(rng)
