"""Each endpoint in turn, whatever it is doing. For comparison, and for engines without a prefix cache."""

import random
from collections.abc import Collection
from typing import Final

from xxhash import xxh3_64_intdigest

from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.counting import CountingPicker
from headwater_router.picker.objective import Objective
from headwater_router.picker.targets import Targets

_MODELS: Final = 1024
"""Whose turn is remembered. A model that is forgotten begins again anywhere."""


class RoundRobinPicker(CountingPicker):
    """Takes turns for each model by itself, or two models in alternation would each see every other turn only."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._turns: dict[int, int] = {}
        """By the hash of the model's name, which may be long."""

    def choose(self, prompt: Prompt, targets: Targets, excluded: Collection[str]) -> Target:
        everyone = targets.all
        model = xxh3_64_intdigest(prompt.model.encode("utf-8", "surrogatepass"))
        turn = self._turns.get(model)
        if turn is None:
            turn = self.rng.randrange(max(len(everyone), 1))
            if len(self._turns) >= _MODELS:
                del self._turns[next(iter(self._turns))]
        for passed in range(len(everyone)):
            target = everyone[(turn + passed) % len(everyone)]
            if target.id not in excluded:
                self._turns[model] = turn + passed + 1
                return target
        raise ValueError("there is no target to pick, or all are excluded")


def make(index: PrefixIndex, rng: random.Random, objective: Objective) -> RoundRobinPicker:
    return RoundRobinPicker(rng)
