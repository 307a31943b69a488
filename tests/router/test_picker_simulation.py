"""Policies against simulated engines on a virtual clock: what prefix awareness is worth, and that it costs nothing."""

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean

import pytest

from headwater.prefix import root_hash, token_chain
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Decision, Picker, Prompt, Target

BLOCK = 128
"""Tokens in a block, of the engines' caches and of the router's chains."""

ROOT = root_hash("model", kind="tokens")


def prompt_of(tokens: list[int]) -> Prompt:
    return Prompt("model", token_chain(ROOT, tokens, BLOCK), len(tokens), text_block_tokens=float(BLOCK))


@dataclass(eq=False)
class Request:
    tokens: list[int]
    output_tokens: int
    then: Callable[[float], None] | None = None
    """Called when the answer ended."""
    sent: float = 0.0
    first_token: float = 0.0
    cached: int = 0
    target: Target | None = None

    @property
    def ttft(self) -> float:
        return self.first_token - self.sent


@dataclass
class Clock:
    """Runs what is due in order of time, of creation where times are equal."""

    now: float = 0.0
    _due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time, next(self._numbers), call))

    def run(self) -> None:
        while self._due:
            self.now, _, call = heapq.heappop(self._due)
            call()


_NUMBERS = itertools.count()


class Engine:
    """Computes prompts one after the other, and streams their answers side by side, which slows the prompts."""

    def __init__(self, clock: Clock, tokens_per_second: float = 5000.0, cache_blocks: int = 2000) -> None:
        self.target = Target(f"engine-{next(_NUMBERS)}")
        self._clock = clock
        self._rate = tokens_per_second
        self._cache_blocks = cache_blocks
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._free_at = 0.0
        self._decoding = 0
        self.computed = 0

    def submit(self, request: Request, first_token: Callable[[], None], ended: Callable[[], None]) -> None:
        start = max(self._clock.now, self._free_at)
        chain = token_chain(ROOT, request.tokens, BLOCK)
        held = len(list(itertools.takewhile(self._cache.__contains__, chain)))
        request.cached = min(held * BLOCK, len(request.tokens) - 1)
        uncached = len(request.tokens) - request.cached
        self.computed += uncached
        self._free_at = start + 0.005 + uncached / self._rate * (1 + 0.02 * self._decoding)
        for key in reversed(chain):
            self._cache[key] = None
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_blocks:
            self._cache.popitem(last=False)
        self._clock.at(self._free_at, lambda: self._begin(request, first_token, ended))

    def _begin(self, request: Request, first_token: Callable[[], None], ended: Callable[[], None]) -> None:
        self._decoding += 1
        first_token()
        self._clock.at(self._clock.now + 0.02 * request.output_tokens, lambda: self._end(ended))

    def _end(self, ended: Callable[[], None]) -> None:
        self._decoding -= 1
        ended()


class Fleet:
    def __init__(self, picker: Picker, engines: int, **engine_options: float) -> None:
        self.clock = Clock()
        self.picker = picker
        self.engines = [Engine(self.clock, **engine_options) for _ in range(engines)]
        self.done: list[Request] = []

    def send(self, time: float, request: Request) -> None:
        self.clock.at(time, lambda: self._send(request))

    def _send(self, request: Request) -> None:
        request.sent = self.clock.now
        targets = [engine.target for engine in self.engines]
        decision = self.picker.pick(prompt_of(request.tokens), targets, self.clock.now)
        request.target = decision.target
        engine = self.engines[targets.index(decision.target)]
        engine.submit(request, lambda: self._first_token(request, decision), lambda: self._ended(request, decision))

    def _first_token(self, request: Request, decision: Decision) -> None:
        request.first_token = self.clock.now
        self.picker.first_token(decision, self.clock.now)

    def _ended(self, request: Request, decision: Decision) -> None:
        self.picker.finished(decision, self.clock.now, Outcome.ANSWERED, cached_tokens=request.cached)
        self.done.append(request)
        if request.then is not None:
            request.then(self.clock.now)

    def run(self) -> list[Request]:
        self.clock.run()
        assert all(engine.target.load.in_flight == 0 for engine in self.engines)
        assert all(engine.target.load.prefill_tokens == 0 for engine in self.engines)
        return self.done

    def ttft(self) -> float:
        return mean(request.ttft for request in self.done)

    def users_of(self, engine: Engine) -> int:
        return sum(request.target is engine.target for request in self.done)


def picker_for(policy: str, seed: int = 7) -> Picker:
    return make(policy, PrefixIndex(), random.Random(seed))


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(50_000) for _ in range(count)]


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

    def pick(self, prompt: Prompt, targets: list[Target], now: float) -> Decision:
        return self._counts.pick(prompt, targets[:1], now)

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
    fleet = Fleet(picker_for("prefix"), engines=8)
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
