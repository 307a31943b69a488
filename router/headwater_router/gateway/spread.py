"""Spreads the requests for one model over the deployments that serve it."""

import random

from headwater_router.endpoints.fleet import Fleet, Served
from headwater_router.picker.weights import choose


class Spread:
    """`key`: what stays the same in a conversation, see `picker.weights`."""

    def __init__(self, fleet: Fleet, rng: random.Random | None = None) -> None:
        self._fleet = fleet
        self._rng = rng or random.Random()

    def choose(self, model: str, served: list[Served], key: int | None) -> list[Served]:
        """Of the endpoints that could take a request those of one deployment."""
        if model not in self._fleet.shared:
            return served
        deployments = {endpoint.spec.deployment: self._fleet.deployment(endpoint) for endpoint, _ in served}
        chosen = choose([(name, each.weight) for name, each in deployments.items()], key, self._rng)
        return [each for each in served if each[0].spec.deployment == chosen]

    def to_wake(self, model: str, key: int | None) -> str | None:
        """The deployment that a request is to be held for. None: it would wait in vain."""
        weights = [(each.key, each.weight) for each in self._fleet.promised(model) if each.wakes]
        return choose(weights, key, self._rng) if weights else None
