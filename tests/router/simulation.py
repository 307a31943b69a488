"""Simulated engines on a virtual clock, for policies to be tried on."""

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean

from headwater.prefix import ENDS, root_hash, token_chain
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Decision, Picker, Prompt, Target
from headwater_router.picker.objective import Objective
from headwater_router.picker.targets import Targets

BLOCK = 128
"""Tokens in a block of the engines' caches, and in a unit of the router's chains."""

ROOT = root_hash("model", kind="tokens")


def prompt_of(request: "Request") -> Prompt:
    units = token_chain(ROOT, request.tokens, BLOCK)
    chain = [units[end - 1] for end in ENDS[1:] if end <= len(units)]
    return Prompt("model", chain, len(request.tokens), text_block_tokens=float(BLOCK), session=request.session)


@dataclass(eq=False)
class Request:
    tokens: list[int]
    output_tokens: int
    then: Callable[[float], None] | None = None
    """Called when the answer ended."""
    session: str | None = None
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
    """Engines behind a picker. One that refuses says no at once; the picker is then told what the dispatcher would."""

    def __init__(self, picker: Picker, engines: int, **engine_options: float) -> None:
        self.clock = Clock()
        self.picker = picker
        self.engines = [Engine(self.clock, **engine_options) for _ in range(engines)]
        self.refusing: set[Engine] = set()
        self.refused: list[Request] = []
        self.done: list[Request] = []
        self._targets = Targets(())
        self._by_target: dict[Target, Engine] = {}
        self._typical_seconds = 1.0

    def send(self, time: float, request: Request) -> None:
        self.clock.at(time, lambda: self._send(request))

    def _send(self, request: Request) -> None:
        request.sent = self.clock.now
        if len(self._targets.all) != len(self.engines):
            self._targets = Targets(engine.target for engine in self.engines)
            self._by_target = {engine.target: engine for engine in self.engines}
        decision = self.picker.pick(prompt_of(request), self._targets, self.clock.now)
        request.target = decision.target
        engine = self._by_target[decision.target]
        if engine in self.refusing:
            self._refuse(request, decision)
        else:
            engine.submit(request, lambda: self._first_token(request, decision), lambda: self._ended(request, decision))

    def _refuse(self, request: Request, decision: Decision) -> None:
        self.picker.finished(decision, self.clock.now, Outcome.OVERLOADED)
        load = decision.target.load
        load.penalty += 1

        def forgive() -> None:
            load.penalty -= 1

        self.clock.at(self.clock.now + self._typical_seconds, forgive)
        self.refused.append(request)

    def _first_token(self, request: Request, decision: Decision) -> None:
        request.first_token = self.clock.now
        self.picker.first_token(decision, self.clock.now)

    def _ended(self, request: Request, decision: Decision) -> None:
        self.picker.finished(decision, self.clock.now, Outcome.ANSWERED, request.cached, request.output_tokens)
        self.done.append(request)
        self._typical_seconds += 0.1 * (self.clock.now - request.sent - self._typical_seconds)
        if request.then is not None:
            request.then(self.clock.now)

    def run(self) -> list[Request]:
        self.clock.run()
        assert all(engine.target.load.in_flight == 0 for engine in self.engines)
        assert all(engine.target.load.prefill_tokens == 0 for engine in self.engines)
        return self.done

    def ttft(self) -> float:
        return mean(request.ttft for request in self.done)

    def share_of(self, engine: Engine) -> float:
        """Of all requests, also of those that it refused."""
        everything = [*self.done, *self.refused]
        return sum(request.target is engine.target for request in everything) / len(everything)

    def users_of(self, engine: Engine) -> int:
        return sum(request.target is engine.target for request in self.done)


def picker_for(policy: str, seed: int = 7, objective: Objective = Objective.LATENCY) -> Picker:
    return make(policy, PrefixIndex(), random.Random(seed), objective)


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(50_000) for _ in range(count)]
