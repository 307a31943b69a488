"""Which of the endpoints that the prefix policy compared it takes: the one with the least cost, but

*A bound.* One that has more than four times the requests that those compared have on average, as its factor goes, and
four more, is passed over, whatever it holds: what is learned may be wrong.

*Ties.* Whoever is within a tenth of the best one's own prefill time of the best is as good. Of these, those with the
least to compute are left, again to within a tenth: a copy for next to no gain would take the time from others. Among
them chance decides, never order. So a cached prompt goes to its holder, and one new to all anywhere among the idle.

*Several routers* that decide within the moment that a message takes know nothing of one another, and would all choose
the one endpoint with an answer less than the rest, where the second prompt then waits for the first. So where there are
others, chance decides among all that are dearer by no more than a twentieth of what a request takes, and where it has
no more to compute and begins as soon. It may be three twentieths where all have about as much of it to compute, because
nobody holds anything of it, or everybody the same: then it does not matter to any cache where it goes.
"""

import random
from collections.abc import Sequence
from typing import Final

from headwater_router.picker.base import Slo
from headwater_router.picker.known import Compared

_TIE: Final = 0.1
"""Of the best one's own prefill time."""
_UNSEEN: Final = 0.05
"""Of what a request takes on average, by how much dearer an endpoint is as good where there are other routers: about
what two more answers there cost."""
_UNSEEN_ALIKE: Final = 0.15
"""The same where all have as much to compute. With as much for all prompts, loads differ so that those that are held by
some leave them."""
_BOUND: Final = 4.0
"""Times the mean load of those compared, which is as much as an endpoint may have,"""
_SLACK: Final = 4
"""and so many requests more."""


def best_of(compared: Sequence[Compared], usual: float, typical: float, rng: random.Random) -> Compared:
    """`usual`: the factor of most. `typical`: seconds that a request takes on average, as the objective weighs them."""
    best = min(compared)
    if best.crowd > _SLACK * usual:
        bound = _BOUND * sum([each.crowd for each in compared]) / len(compared) + _SLACK * usual
        if best.crowd > bound:
            compared = [each for each in compared if each.crowd <= bound]
            best = min(compared)
    if len(compared) > 1:
        limit = best.cost + _TIE * best.prefill
        tied = [each for each in compared if each.cost <= limit]
        if len(tied) > 1:
            work = (1 + _TIE) * min([each.prefill for each in tied])
            best = _one_of([each for each in tied if each.prefill <= work], rng)
        if best.target.load.others is not None:
            alike = max([each.work for each in compared]) <= (1 + _TIE) * best.work
            share = _UNSEEN_ALIKE if alike else _UNSEEN
            best = _one_of(_alike(compared, best, share * typical), rng)
    return best


def _alike(compared: Sequence[Compared], best: Compared, dearer: float) -> Sequence[Compared]:
    """Among which it makes little difference to this request, and much to it that other routers choose another."""
    cost, first, prefill = best.cost + dearer, best.first + _TIE * best.prefill, (1 + _TIE) * best.prefill
    return [each for each in compared if each.cost <= cost and each.first <= first and each.prefill <= prefill]


def _one_of(compared: Sequence[Compared], rng: random.Random) -> Compared:
    return compared[int(rng.random() * len(compared))]


def nearest(compared: Sequence[Compared], slo: Slo, output: float, now: float) -> tuple[float, Sequence[Compared]]:
    """Those that should keep what its client wants; where none should, those that miss it by the least."""
    misses = [slo.missed_by(now + each.first, each.rest / output) for each in compared]
    least = min(misses)
    return least, [each for each, miss in zip(compared, misses, strict=True) if miss == least]
