"""An engine that turns everything down at once always looks idle, and gets no more than its share all the same."""

import random
from collections.abc import Callable

import pytest

from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Prompt, Target
from tests.router.simulation import Fleet, Request, picker_for, words

FAIR = 0.25


def unlike(fleet: Fleet, per_second: float, count: int = 1200) -> None:
    rng = random.Random(5)
    at = 0.0
    for number in range(count):
        at += rng.expovariate(per_second)
        tokens = words(rng, int(min(4000, 400 * rng.lognormvariate(0, 0.7))))
        fleet.send(at, Request(tokens, rng.randrange(20, 120), session=str(number)))


def alike(fleet: Fleet, per_second: float, count: int = 1200) -> None:
    rng = random.Random(6)
    systems = [words(rng, 1000) for _ in range(8)]
    at = 0.0
    for number in range(count):
        at += rng.expovariate(per_second)
        tokens = rng.choice(systems) + words(rng, 200)
        fleet.send(at, Request(tokens, rng.randrange(20, 120), session=str(number)))


@pytest.mark.parametrize("traffic", [unlike, alike])
@pytest.mark.parametrize("per_second", [1.0, 8.0, 24.0])
@pytest.mark.parametrize("policy", ["prefix", "least_loaded", "session"])
def test_one_of_four_that_refuses_at_once_gets_no_more_than_its_share(
    policy: str, per_second: float, traffic: Callable[[Fleet, float], None]
) -> None:
    fleet = Fleet(picker_for(policy), engines=4)
    fleet.refusing = {fleet.engines[2]}
    traffic(fleet, per_second)
    fleet.run()
    assert fleet.share_of(fleet.engines[2]) <= 1.3 * FAIR


def test_one_that_refuses_from_some_time_on_loses_what_drew_requests_to_it() -> None:
    fleet = Fleet(picker_for("prefix"), engines=4)
    alike(fleet, 8.0, 1600)
    refusing = fleet.engines[1]
    fleet.clock.at(100.0, lambda: fleet.refusing.add(refusing))
    fleet.run()
    late = [request for request in [*fleet.done, *fleet.refused] if request.sent > 110.0]
    assert sum(request.target is refusing.target for request in late) <= 1.3 * FAIR * len(late)


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.ANSWERED])
def test_nothing_but_an_answer_teaches(outcome: Outcome) -> None:
    picker, target = make("prefix", rng=random.Random(0)), Target("a")
    for number in range(20):
        decision = picker.pick(Prompt("m", [1, 2, 3], 4000), [target], 0.1 * number)
        picker.finished(decision, 0.1 * number, outcome, cached_tokens=0)
    again = picker.pick(Prompt("m", [1, 2, 3], 4000), [target], 10.0)
    assert (target.load.prefill_rate, again.predicted_ttft, again.predicted_cached_tokens) == (0.0, None, 0)
    assert (target.load.in_flight, target.load.prefill_tokens) == (1, 4000)


@pytest.mark.parametrize("policy", ["prefix", "least_loaded", "session"])
def test_a_penalty_counts_as_requests_in_flight(policy: str) -> None:
    picker, targets = make(policy, rng=random.Random(0)), [Target("a"), Target("b")]
    targets[0].load.penalty = 10
    for number in range(8):
        assert picker.pick(Prompt("m", [number], 400, session="s"), targets, 0.0).target is targets[1]
