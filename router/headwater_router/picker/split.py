"""How one class of requests is split over the deployments that could answer it, by what it costs in each.

    cost(d) = (seconds that answers took + seconds that they took from others there) / tokens of prompts and answers

of the latest answers. That is the price of one request more, so where it is the same everywhere, no request could move
without loss (Pigou, 1920); the time that answers take alone would fill the quick ones until they are as slow as all
others. Prompt tokens that were cached count as well: who caches more is to look cheap. Conversations are dealt out by a
hash, like lots, so what each deployment gets is alike, and costs can be compared.

A look compares the dearest deployment that has a share with the cheapest that may have more. One that is dearer, at two
looks in a row, gives a part of its share away:

          dearer              dearer again, by the same two
    even ────────> leaning ───────────────────────────────────> a step, and even
      ^               │
      └───────────────┘ otherwise

What was sent before a step says nothing of what came of it, so it is not learned from any more. A step is as large as
the one before, and a half more; where it goes the other way, half as large. So shares go far when something has
changed, and settle where it has not (as in Riedmiller and Braun's Rprop, 1993). All is pure: times come from outside.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from headwater_router.picker.weights import choose

_EXPLORED: Final = 0.02
"""Of all conversations, those that go by the weights, whatever was found."""
_BOUND: Final = 2.0
"""Times the share that its weight says, which a deployment may have."""
_DEARER: Final = 1.1
"""Times the cheapest one's cost, above which shares move."""
_LOOK: Final = 16
"""Answers after which there is a look."""
_KNOWN: Final = 8
"""Answers of a deployment before its cost means anything."""
_MEMORY: Final = 1 - 1 / 32
"""What the weight of an answer becomes with the next one."""
_SURPRISE: Final = 8.0
"""Times what it was expected to cost, which an answer counts at most: a client that reads slowly is no slow engine. And
times the tokens that were expected of its time: that many more are the engine's word, and a mistake."""
_AFTER_STEP: Final = 0.25
"""And with a step of its deployment."""
_FIRST_STEP: Final = 0.1
_LEAST_STEP: Final = 0.02
_LARGEST_STEP: Final = 0.3
_ONWARD: Final = 1.5
_BACK: Final = 0.5
_OUTPUT: Final = 100.0
"""Tokens of a prompt that one of an answer counts for: so many times longer it takes, with engines of many kinds."""


class Why(StrEnum):
    """Why a request went to its deployment."""

    ALONE = "alone"
    """No other could take it."""
    WEIGHT = "weight"
    SHARE = "share"
    """As the shares are that were found."""
    EXPLORED = "explored"
    """By the weights, to measure what that costs."""


class Lean(StrEnum):
    """What the last look at a split has found."""

    EVEN = "even"
    LEANING = "leaning"
    """One deployment is dearer. If it is again, shares move."""


class Answer(NamedTuple):
    """What one took. Times are seconds."""

    sent: float
    seconds: float
    taken: float
    """From others there."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None


@dataclass(slots=True)
class Place:
    """A deployment, as requests of one class find it."""

    weight: int
    share: float = 0.0
    seen: int = 0
    """Answers from there, of all time."""
    answers: float = 0.0
    """All that follows is of the latest answers, the older ones counting for less."""
    seconds: float = 0.0
    work: float = 0.0
    """Tokens, one of an answer counting as many."""
    prompts: float = 0.0
    """Tokens of prompts of which it was said how many were cached,"""
    cached: float = 0.0
    """and those."""
    stepped: float = float("-inf")
    """When its share last moved."""

    @property
    def cost(self) -> float | None:
        """None: not known yet."""
        return self.seconds / self.work if self.seen >= _KNOWN and self.work else None

    @property
    def cached_share(self) -> float | None:
        return self.cached / self.prompts if self.prompts else None

    def learn(self, answer: Answer) -> None:
        work, seconds = answer.prompt_tokens + _OUTPUT * answer.output_tokens, answer.seconds + answer.taken
        if (cost := self.cost) is not None:
            seconds, work = min(seconds, _SURPRISE * cost * work), min(work, _SURPRISE * seconds / cost)
        self._fade(_MEMORY)
        self.seen += 1
        self.answers += 1
        self.seconds += seconds
        self.work += work
        if answer.cached_tokens is not None:
            self.prompts += answer.prompt_tokens
            self.cached += min(answer.cached_tokens, answer.prompt_tokens)

    def step(self, change: float, now: float) -> None:
        self.share = max(0.0, round(self.share + change, 9))  # 0 is to be 0.
        self.stepped = now
        self._fade(_AFTER_STEP)

    def _fade(self, by: float) -> None:
        self.answers *= by
        self.seconds *= by
        self.work *= by
        self.prompts *= by
        self.cached *= by


_Pair = tuple[str, str]
"""The dearest and the cheapest."""


@dataclass(slots=True)
class Split:
    places: dict[str, Place] = field(default_factory=dict)
    lean: Lean = Lean.EVEN
    _pair: _Pair | None = None
    """Those of the last look that found any."""
    _last: _Pair | None = None
    """Those of the last step."""
    _step: float = _FIRST_STEP
    _since_look: int = 0

    def offer(self, weights: Mapping[str, int]) -> None:
        """These deployments are there, with these weights. Newcomers begin with the share that their weight says."""
        if {name: place.weight for name, place in self.places.items()} == weights:
            return
        everything = sum(weights.values()) or 1
        before = {name: place for name, place in self.places.items() if name in weights}
        new = {name: weight / everything for name, weight in weights.items() if name not in before}
        had, left = sum(place.share for place in before.values()), 1.0 - sum(new.values())
        for name, place in before.items():
            place.weight = weights[name]
            place.share = place.share * left / had if had else place.weight / everything
        self.places = before | {name: Place(weights[name], share) for name, share in new.items()}
        self._keep_bounds()

    def choose(self, key: int | None, among: Sequence[str], rng: random.Random) -> tuple[str, Why]:
        """One of those that can take it now, of which there is at least one. `key`: see `weights.choose`."""
        weights: list[tuple[str, float]] = [(name, self.places[name].weight) for name in among]
        if _explores(key, rng):
            return choose(weights, key, rng), Why.EXPLORED
        shares = [(name, self.places[name].share) for name in among]
        if not any(share for _, share in shares):
            shares = weights  # Those that have a share are all away.
        return choose(shares, None if key is None else xxh3_64_intdigest(b"share", key), rng), Why.SHARE

    def learn(self, name: str, answer: Answer, now: float) -> None:
        """An answer came from there. May move shares."""
        place = self.places.get(name)
        if place is None or answer.sent < place.stepped:
            return
        place.learn(answer)
        self._since_look += 1
        if self._since_look >= _LOOK:
            self._since_look = 0
            self._look(now)

    def mean(self) -> float | None:
        """Cost over all places, as the latest answers were shared out. None: not known yet."""
        known = [place for place in self.places.values() if place.cost is not None]
        work = sum(place.work for place in known)
        return sum(place.seconds for place in known) / work if work else None

    def most(self, name: str) -> float:
        """The largest share that it may have."""
        everything = sum(place.weight for place in self.places.values())
        return min(1.0, _BOUND * self.places[name].weight / everything) if everything else 1.0

    def _look(self, now: float) -> None:
        pair = self._apart()
        if pair is None:
            self.lean, self._pair = Lean.EVEN, None
        elif self.lean is Lean.LEANING and pair == self._pair:
            self.lean, self._pair = Lean.EVEN, None
            self._move(pair, now)
        else:
            self.lean, self._pair = Lean.LEANING, pair

    def _apart(self) -> _Pair | None:
        """The dearest that has a share and the cheapest that may have more, where their costs are far apart."""
        costs = {name: place.cost for name, place in self.places.items() if place.weight}
        givers = [(cost, name) for name, cost in costs.items() if cost is not None and self.places[name].share > 0]
        takers = [
            (cost, name)
            for name, cost in costs.items()
            if cost is not None and self.places[name].share < self.most(name)
        ]
        if not givers or not takers:
            return None
        (dear, giver), (cheap, taker) = max(givers), min(takers)
        return (giver, taker) if dear > _DEARER * cheap else None

    def _move(self, pair: _Pair, now: float) -> None:
        if self._last is not None:
            factor = _ONWARD if pair == self._last else _BACK if pair == self._last[::-1] else 1.0
            self._step = min(max(factor * self._step, _LEAST_STEP), _LARGEST_STEP)
        self._last = pair
        giver, taker = self.places[pair[0]], self.places[pair[1]]
        part = min(self._step, giver.share, self.most(pair[1]) - taker.share)
        if giver.share - part < _LEAST_STEP:
            part = min(giver.share, self.most(pair[1]) - taker.share)
        giver.step(-part, now)
        taker.step(part, now)

    def _keep_bounds(self) -> None:
        """What is above its bound goes to those that have room. There is enough: bounds come to 1 at least."""
        room = {name: self.most(name) - place.share for name, place in self.places.items()}
        over = sum(-each for each in room.values() if each < 0)
        free = sum(each for each in room.values() if each > 0)
        for name, each in room.items():
            self.places[name].share += each if each < 0 else over * each / free if over else 0.0


def _explores(key: int | None, rng: random.Random) -> bool:
    """By its hash, so that all routers think alike, and it does so in each turn."""
    even = rng.random() if key is None else xxh3_64_intdigest(b"explores", key) / 2**64
    return even < _EXPLORED
