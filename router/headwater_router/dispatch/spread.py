"""Spreads the requests for one model over the deployments that serve it: by their weights, or as they find it best."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from headwater_router.dispatch.call import Call
from headwater_router.dispatch.dispatch import Dispatch
from headwater_router.dispatch.lineup import Lineup
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.group import Share
from headwater_router.picker.base import Prompt
from headwater_router.picker.classes import Applications, Kind
from headwater_router.picker.split import Answer, Split, Why
from headwater_router.picker.weights import choose

Chosen = tuple[Lineup, Why]


@dataclass(slots=True)
class _Found:
    """Of one model."""

    applications: Applications = field(default_factory=Applications)
    splits: dict[Kind, Split] = field(default_factory=dict)
    version: int = -1
    """Of the fleet, when its deployments were looked up."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Of the deployments that find their shares."""


class Spread:
    def __init__(self, fleet: Fleet, held: Callable[[Prompt, float], int], rng: random.Random | None = None) -> None:
        """`held`: leading blocks of a prompt's text that some endpoint should hold at a time."""
        self._fleet = fleet
        self._held = held
        self._rng = rng or random.Random()
        self._found: dict[str, _Found] = {}

    def choose(self, call: Call, lineups: Sequence[Lineup], now: float) -> Chosen:
        """Of the deployments that could take a request one; there is at least one."""
        if len(lineups) > 1 and call.suspects:
            lineups = _elsewhere(call, lineups)
        if len(lineups) == 1:
            return lineups[0], Why.ALONE
        by_key = {each.deployment.key: each for each in lineups}
        weights = [(name, each.deployment.weight) for name, each in by_key.items()]
        name, why = choose(weights, call.conversation, self._rng), Why.WEIGHT
        among = [name for name, each in by_key.items() if each.deployment.share is Share.AUTO]
        if name in among and len(among) > 1:
            name, why = self._split(call, now).choose(call.conversation, among, self._rng)
        return by_key[name], why

    def learn(self, dispatch: Dispatch, now: float) -> None:
        """A whole answer came of it."""
        call, usage = dispatch.call, dispatch.usage
        found = self._found.get(call.model)
        if call.kind is None or usage is None or not usage.output_tokens or found is None:
            return
        if (split := found.splits.get(call.kind)) is not None:
            seconds, taken = now - dispatch.at, dispatch.decision.taken()
            told = usage.prompt_tokens, usage.output_tokens, usage.cached_tokens
            split.learn(dispatch.endpoint.spec.whose, Answer(dispatch.at, seconds, taken, *told), now)

    def splits(self, model: str) -> Mapping[Kind, Split]:
        """What was found for a model; nothing where nothing is to be."""
        found = self._found.get(model)
        return found.splits if found is not None else {}

    def __iter__(self) -> Iterator[tuple[str, Kind, Split]]:
        """All that was found, with the names of the models."""
        for model, found in self._found.items():
            for kind, split in found.splits.items():
                yield model, kind, split

    def to_wake(self, model: str, key: int | None) -> str | None:
        """The deployment that a request is to be held for. None: it would wait in vain."""
        weights = [(each.key, each.weight) for each in self._fleet.on_its_way(model)]
        return choose(weights, key, self._rng) if weights else None

    def _split(self, call: Call, now: float) -> Split:
        found = self._found.get(call.model)
        if found is None:
            self._forget()
            found = self._found[call.model] = _Found()
        if found.version != self._fleet.version:
            found.version = self._fleet.version
            found.weights = self._weights(call.model)
        if call.kind is None:
            call.kind = found.applications.kind(call.prompt, call.traits, self._held(call.prompt, now))
        split = found.splits.get(call.kind)
        if split is None:
            split = found.splits[call.kind] = Split()
        split.offer(found.weights)
        return split

    def _weights(self, model: str) -> dict[str, int]:
        """Of all that find their shares, also of those that take no requests now."""
        there = {(each := self._fleet.deployment(endpoint)).key: each for endpoint, _ in self._fleet.serving(model)}
        return {name: each.weight for name, each in sorted(there.items()) if each.share is Share.AUTO}

    def _forget(self) -> None:
        """Models that are gone."""
        for model in self._found.keys() - set(self._fleet.models):
            del self._found[model]


def _elsewhere(call: Call, found: Sequence[Lineup]) -> Sequence[Lineup]:
    """What one replica failed, another deployment is more likely to answer than another replica: a new version may be
    wrong."""
    failing = {dispatch.endpoint.spec.whose for dispatch in call.suspects}
    return [lineup for lineup in found if lineup.deployment.key not in failing] or found
