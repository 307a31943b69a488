"""Each endpoint in turn, whatever it is doing. For comparison, and for engines without a prefix cache."""

import random
from collections.abc import Sequence

from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.counting import CountingPicker


class RoundRobinPicker(CountingPicker):
    """Takes turns for each model by itself, or two models in alternation would each see every other turn only."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._turns: dict[str, int] = {}

    def choose(self, prompt: Prompt, targets: Sequence[Target], now: float) -> Target:
        turn = self._turns.get(prompt.model)
        if turn is None:
            turn = self.rng.randrange(len(targets))
        self._turns[prompt.model] = turn + 1
        return targets[turn % len(targets)]
