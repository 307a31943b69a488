"""Spreads the requests for one model over the deployments that serve it."""

import random
from collections.abc import Sequence

from headwater_router.dispatch.lineup import Lineup
from headwater_router.endpoints.fleet import Fleet
from headwater_router.picker.weights import choose


class Spread:
    """`key`: what stays the same in a conversation, see `picker.weights`."""

    def __init__(self, fleet: Fleet, rng: random.Random | None = None) -> None:
        self._fleet = fleet
        self._rng = rng or random.Random()

    def choose(self, lineups: Sequence[Lineup], key: int | None) -> Lineup:
        """Of the deployments that could take a request one; there is at least one."""
        if len(lineups) == 1:
            return lineups[0]
        by_key = {each.deployment.key: each for each in lineups}
        return by_key[choose([(name, each.deployment.weight) for name, each in by_key.items()], key, self._rng)]

    def to_wake(self, model: str, key: int | None) -> str | None:
        """The deployment that a request is to be held for. None: it would wait in vain."""
        weights = [(each.key, each.weight) for each in self._fleet.on_its_way(model)]
        return choose(weights, key, self._rng) if weights else None
