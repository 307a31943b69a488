"""Policies against simulated engines on a virtual clock: what prefix awareness is worth, and that it costs nothing."""

import itertools
import random
from collections.abc import Sequence

import pytest

from headwater.prefix import token_chain
from headwater_router.picker import make
from headwater_router.picker.base import Decision, Prompt, Target
from headwater_router.picker.objective import Objective
from headwater_router.picker.targets import Targets
from tests.router.simulation import BLOCK, ROOT, Engine, Fleet, Request, picker_for, words


def conversations(fleet: Fleet, count: int, turns: int) -> None:
    """Each with a system prompt of 1,000 tokens; answers and questions of 100 tokens, a pause between turns."""
    rng = random.Random(1)

    def turn(history: list[int], left: int) -> Request:
        def go_on(now: float) -> None:
            if left > 1:
                fleet.send(now + rng.uniform(0.1, 2.0), turn(history + words(rng, 200), left - 1))

        return Request(history, 100, go_on)

    for _ in range(count):
        fleet.send(rng.uniform(0, 2.0), turn(words(rng, 1100), turns))


def reusable_tokens(requests: list[Request]) -> int:
    """What a single endless cache would have spared."""
    seen: set[int] = set()
    total = 0
    for request in sorted(requests, key=lambda request: request.sent):
        chain = token_chain(ROOT, request.tokens, BLOCK)
        total += BLOCK * len(list(itertools.takewhile(seen.__contains__, chain)))
        seen.update(chain)
    return total


def cached_share(policy: str) -> float:
    fleet = Fleet(picker_for(policy), engines=2)
    conversations(fleet, count=8, turns=10)
    requests = fleet.run()
    assert len(requests) == 80
    return sum(request.cached for request in requests) / reusable_tokens(requests)


def test_conversations_find_nine_tenths_of_what_can_be_reused_in_cache() -> None:
    assert cached_share("prefix") >= 0.9
    assert cached_share("prefix") > cached_share("round_robin")


def hot_prefix(fleet: Fleet, requests: int, per_second: float, shared: int, own: int) -> None:
    rng = random.Random(2)
    system = words(rng, shared)
    at = 0.0
    for _ in range(requests):
        at += rng.expovariate(per_second)
        fleet.send(at, Request(system + words(rng, own), 50))


class Sticky:
    """What a router does that follows the cache and nothing else: the first holder gets all."""

    def __init__(self) -> None:
        self._counts = make("least_loaded", rng=random.Random(0))

    def pick(self, prompt: Prompt, targets: Targets | Sequence[Target], now: float) -> Decision:
        return self._counts.pick(prompt, Targets.of(targets).all[:1], now)

    def __getattr__(self, name: str) -> object:
        return getattr(self._counts, name)


def test_a_hot_prefix_is_answered_sooner_than_by_turns_and_than_by_its_first_holder() -> None:
    ttft = {}
    for name, picker in {
        "prefix": picker_for("prefix"),
        "round_robin": picker_for("round_robin"),
        "sticky": Sticky(),
    }.items():
        fleet = Fleet(picker, engines=4, cache_blocks=40)
        rng = random.Random(4)
        # A hot prefix, and others that together do not fit in one engine's cache.
        hot_prefix(fleet, requests=300, per_second=20, shared=2000, own=200)
        systems = [words(rng, 2000) for _ in range(4)]
        for number in range(100):
            fleet.send(number * 0.15, Request(rng.choice(systems) + words(rng, 200), 50))
        fleet.run()
        ttft[name] = fleet.ttft()
    assert ttft["prefix"] < 0.9 * ttft["round_robin"]
    assert ttft["prefix"] < 0.9 * ttft["sticky"]


@pytest.mark.parametrize(("per_second", "least", "most"), [(2, 1, 3), (20, 2, 6)])
def test_a_hot_prefix_spreads_to_as_many_endpoints_as_it_needs_and_no_more(
    per_second: float, least: int, most: int
) -> None:
    """An engine computes 5,000 tokens a second, 300 of a request are its own: 20 a second are too many for one."""
    fleet = Fleet(picker_for("prefix", objective=Objective.FIRST_TOKEN), engines=8)
    hot_prefix(fleet, requests=400, per_second=per_second, shared=4000, own=300)
    fleet.run()
    assert least <= sum(fleet.users_of(engine) > 0 for engine in fleet.engines) <= most


def test_an_endpoint_that_joins_is_used() -> None:
    fleet = Fleet(picker_for("prefix"), engines=2)
    rng = random.Random(3)
    for number in range(200):
        fleet.send(number * 0.05, Request(words(rng, 500), 20))
    newcomer = Engine(fleet.clock)
    fleet.clock.at(5.0, lambda: fleet.engines.append(newcomer))
    fleet.run()
    assert fleet.users_of(newcomer) >= 20


def test_a_slow_endpoint_gets_its_share_by_speed() -> None:
    fleet = Fleet(picker_for("prefix"), engines=1)
    slow = Engine(fleet.clock, tokens_per_second=1000.0)
    fleet.engines.append(slow)
    rng = random.Random(3)
    for number in range(300):
        fleet.send(number * 0.1, Request(words(rng, 500), 20))
    fleet.run()
    assert 0 < fleet.users_of(slow) < 100
