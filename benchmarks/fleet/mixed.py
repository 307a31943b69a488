"""Two kinds of engines behind one name: the shares that the router finds, beside all fixed ones.

    python -m benchmarks.fleet.mixed [--workloads NAME ...]

Prints a table for docs/performance.md. Each workload has two classes of requests. *Fixed* is the best of a sweep: the
share of each class that the second deployment gets, in halves, each against each, and in quarters beside the best.
Counted is what was sent after the first 40 seconds, in which shares are found. *Slowed*: at a third of the time the
engines of one deployment become slower, and what is counted is what was sent 40 seconds after that.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import fmean
from typing import Final

from xxhash import xxh3_64_intdigest

from benchmarks.fleet.engine import Engine, Stay
from benchmarks.fleet.hardware import H100_8B, Hardware
from benchmarks.fleet.memory import BLOCK, Memory
from benchmarks.fleet.requests import Request, around, arrivals, fresh, shared
from benchmarks.fleet.router import Record, Router
from benchmarks.fleet.simulation import Run, Workload, play
from benchmarks.virtual_clock import VirtualLoop
from headwater_router.dispatch.call import Call
from headwater_router.dispatch.lineup import Lineup
from headwater_router.dispatch.spread import Chosen, Spread
from headwater_router.endpoints.group import Group, Share
from headwater_router.index import PrefixIndex
from headwater_router.picker.classes import Kind, Traits
from headwater_router.picker.policies import Policies
from headwater_router.picker.split import Why
from headwater_router.picker.weights import choose

SECONDS: Final = 120.0
LEARNING: Final = 40.0
BULK, PREFIX = "bulk", "prefix"


class Structured(Request):
    """Its answer is to follow a schema."""


class NoCache(Memory):
    """Nothing is kept for others."""

    def take(self, chain: Sequence[int], tokens: int) -> int | None:
        return super().take((), tokens)

    def release(self, chain: Sequence[int], own: int, computed: Sequence[int] = ()) -> None:
        super().release((), own + BLOCK * len(chain))


class BulkEngine(Engine):
    """Keeps no prefixes."""

    def _reset(self) -> None:
        super()._reset()
        self.memory = NoCache(self.hardware.kv_tokens)


class SkippingEngine(Engine):
    """Skips tokens for which a schema leaves no choice: of a structured answer, two fifths."""

    def submit(self, request: Request, on_first: Callable[[float], None]) -> Stay:
        if isinstance(request, Structured):
            request = replace(request, answer=request.answer[: max(4, int(0.6 * len(request.answer)) // 4 * 4)])
        return super().submit(request, on_first)


Make = Callable[[VirtualLoop], Engine]


def engines(kind: type[Engine], hardware: Hardware, count: int, speed: float = 1.0) -> list[Make]:
    return [partial(kind, hardware=hardware, speed=speed)] * count


@dataclass(frozen=True, slots=True)
class Mixed:
    name: str
    requests: Callable[[random.Random], Iterator[Request]]
    kinds: tuple[Kind, Kind]
    bulk: list[Make]
    prefix: list[Make]
    slowed: Mapping[str, float] | None = None
    """Deployments whose engines become slower, at a third of the time, and what is left of their speed."""

    @property
    def counted_from(self) -> float:
        return LEARNING if self.slowed is None else SECONDS / 3 + LEARNING


# Traffic


def turns(
    rng: random.Random, at: float, history: bytes, count: int, question: float, answer: float, pause: float
) -> Request:
    """A conversation behind `history`: the first of `count` turns, each followed by the next after a pause."""
    session = f"{rng.getrandbits(64):x}"

    def turn(now: float, said: bytes, left: int) -> Request:
        prompt, reply = said + fresh(rng, around(rng, question)), fresh(rng, around(rng, answer))

        def later(ended: float) -> Request | None:
            return turn(ended + rng.expovariate(1 / pause), prompt + reply, left - 1) if left > 1 else None

        return Request(now, prompt, reply, session=session, then=later)

    return turn(at, history, count)


def assistants(rng: random.Random) -> Iterator[Request]:
    """Half are questions to one of twelve assistants with 4,000 tokens of instructions, half have nothing in common."""
    return _assistants(rng, 0.5)


def more_assistants(rng: random.Random) -> Iterator[Request]:
    """The same, where nine of ten requests are to assistants."""
    return _assistants(rng, 0.9)


def _assistants(rng: random.Random, part: float) -> Iterator[Request]:
    for at in arrivals(rng, 13.0, SECONDS):
        if rng.random() < part:
            system = shared(f"assistant {rng.randrange(12)}", 4000)
            yield Request(at, system + fresh(rng, around(rng, 200)), fresh(rng, around(rng, 250)))
        else:
            yield Request(at, fresh(rng, around(rng, 600)), fresh(rng, around(rng, 350)))


def agents(rng: random.Random) -> Iterator[Request]:
    """Agents with 3,000 tokens of tools, of six turns and more; and chats without instructions."""
    for at in arrivals(rng, 4.5, SECONDS):
        own = random.Random(rng.getrandbits(64))
        if own.random() < 0.25:
            yield turns(own, at, shared(f"agent {own.randrange(4)}", 3000), own.randrange(6, 12), 400, 120, 1.0)
        else:
            yield turns(own, at, b"", own.randrange(1, 4), 250, 350, 10.0)


def extraction(rng: random.Random) -> Iterator[Request]:
    """Forms of 1,200 tokens each of its own, answered in JSON; and chats without instructions."""
    for at in arrivals(rng, 16.0, SECONDS):
        if rng.random() < 0.5:
            yield Structured(at, fresh(rng, around(rng, 1200)), fresh(rng, around(rng, 250)), streamed=False)
        else:
            yield Request(at, fresh(rng, around(rng, 600)), fresh(rng, around(rng, 300)))


def documents(rng: random.Random) -> Iterator[Request]:
    """Documents of 9,000 to 16,000 tokens with two questions each; and short chats."""
    for at in arrivals(rng, 6.0, SECONDS):
        own = random.Random(rng.getrandbits(64))
        if own.random() < 0.15:
            yield turns(own, at, fresh(own, own.randrange(9_000, 16_000)), 2, 60, 250, 5.0)
        else:
            yield Request(at, fresh(own, around(own, 500)), fresh(own, around(own, 300)))


CHEAP: Final = replace(H100_8B, kv_tokens=60_000)
"""Half as fast, where `engines` says so, and with less memory: as a card of 48 GB beside one of 80."""
QUICK: Final = replace(H100_8B, step=4.4e-3, prefill=21e-6, decode=17e-6)
"""A server that is a seventh quicker."""

ALL: Final = (
    Mixed(
        "assistants",
        assistants,
        (Kind.SHARED, Kind.PLAIN),
        engines(BulkEngine, QUICK, 2),
        engines(Engine, H100_8B, 2),
    ),
    Mixed(
        "mostly assistants",
        more_assistants,
        (Kind.SHARED, Kind.PLAIN),
        engines(BulkEngine, QUICK, 3),
        engines(Engine, H100_8B, 1),
    ),
    Mixed("agents", agents, (Kind.SHARED, Kind.PLAIN), engines(BulkEngine, QUICK, 2), engines(Engine, H100_8B, 2)),
    Mixed(
        "extraction",
        extraction,
        (Kind.STRUCTURED, Kind.PLAIN),
        engines(Engine, QUICK, 2),
        engines(SkippingEngine, H100_8B, 2),
    ),
    Mixed("documents", documents, (Kind.LONG, Kind.PLAIN), engines(Engine, CHEAP, 3, 0.5), engines(Engine, H100_8B, 2)),
    Mixed(
        "assistants, bulk slowed",
        assistants,
        (Kind.SHARED, Kind.PLAIN),
        engines(BulkEngine, QUICK, 2),
        engines(Engine, H100_8B, 2),
        slowed={BULK: 0.4},
    ),
    Mixed(
        "extraction, prefix slowed",
        extraction,
        (Kind.STRUCTURED, Kind.PLAIN),
        engines(Engine, QUICK, 2),
        engines(SkippingEngine, H100_8B, 2),
        slowed={PREFIX: 0.4},
    ),
)


# Runs


class MixedRouter(Router):
    """Knows of a request what its body would say."""

    def __init__(self, loop: VirtualLoop, engines: Sequence[Engine], groups: Sequence[Group]) -> None:
        policies = Policies("prefix", PrefixIndex(), random.Random(1))
        super().__init__(loop, engines, policies, random.Random(2), groups=groups)
        self._openings: dict[str, int] = {}
        """Bytes of the first prompt of each conversation."""

    def call(self, request: Request, now: float) -> Call:
        call = super().call(request, now)
        call.conversation = xxh3_64_intdigest(request.session.encode() if request.session else request.prompt)
        opening = self._openings.setdefault(request.session, len(request.prompt)) if request.session else None
        call.traits = Traits(isinstance(request, Structured), opening / len(request.prompt) if opening else 1.0)
        return call


class FixedSpread(Spread):
    """Shares of the second deployment that somebody chose, by class."""

    def __init__(self, router: Router, shares: Mapping[Kind, float], other: float) -> None:
        super().__init__(router.fleet, router.policies.held, random.Random(1))
        self._shares, self._other = shares, other

    def choose(self, call: Call, lineups: Sequence[Lineup], now: float) -> Chosen:
        super().choose(call, lineups, now)  # Finds its class.
        share = self._other if call.kind is None else self._shares.get(call.kind, self._other)
        by_key = {each.deployment.key: each for each in lineups}
        weights = [(name, share if name == PREFIX else 1 - share) for name in by_key]
        return by_key[choose(weights, call.conversation, random.Random(1))], Why.WEIGHT


@dataclass(slots=True)
class Outcome:
    mean: float
    """Seconds to the last token."""
    p99: float
    shares: Mapping[Kind, float]
    """Of the second deployment, as they went in fact."""


def one(mixed: Mixed, fixed: Mapping[Kind, float] | None = None, other: float = 0.5) -> Outcome:
    """A run with the shares that the router finds, or with fixed ones."""
    loop = VirtualLoop()
    made = [*mixed.bulk, *mixed.prefix]
    workload = Workload(mixed.name, mixed.requests, speeds=(1.0,) * len(made))
    result = Run(workload, engines=[make(loop) for make in made])
    bulk = set(result.engines[: len(mixed.bulk)])
    groups = [Group(BULK, 100, Share.AUTO)] * len(mixed.bulk) + [Group(PREFIX, 100, Share.AUTO)] * len(mixed.prefix)
    router = MixedRouter(loop, result.engines, groups)
    if fixed is not None:
        router.dispatcher.spread = FixedSpread(router, fixed, other)
    for engine in result.engines:
        left = (mixed.slowed or {}).get(BULK if engine in bulk else PREFIX, 1.0)
        loop.call_at(SECONDS / 3, setattr, engine, "speed", engine.speed * left)
    play(loop, result, [router])
    counted = [each for each in result.records if each.request.at >= mixed.counted_from]
    return _outcome(counted, bulk, mixed)


def _kind(request: Request, mixed: Mixed) -> Kind:
    """By what the generators make."""
    if Kind.STRUCTURED in mixed.kinds:
        return Kind.STRUCTURED if isinstance(request, Structured) else Kind.PLAIN
    return mixed.kinds[0] if request.prompt_tokens >= 2500 else Kind.PLAIN


def _outcome(records: Sequence[Record], bulk: set[Engine], mixed: Mixed) -> Outcome:
    durations = sorted(each.duration for each in records if each.duration is not None)
    if len(durations) != len(records):
        raise RuntimeError(f"{mixed.name}: {len(records) - len(durations)} requests had no answer")
    shares = {}
    for kind in mixed.kinds:
        of_kind = [each.engine not in bulk for each in records if _kind(each.request, mixed) is kind]
        shares[kind] = sum(of_kind) / len(of_kind)
    return Outcome(fmean(durations), durations[int(0.99 * len(durations))], shares)


HALVES: Final = (0.0, 0.5, 1.0)
_QUARTER: Final = 0.25

Shares = tuple[float, float]
"""That the second deployment gets of each of a workload's classes."""


def sweep(mixed: Mixed) -> tuple[Outcome, Outcome]:
    """The best with one share for both classes, and the best with one for each."""

    def fixed(shares: Shares) -> Outcome:
        return one(mixed, dict(zip(mixed.kinds, shares, strict=True)), fmean(shares))

    found = {shares: fixed(shares) for shares in product(HALVES, repeat=2)}
    alike = min((outcome for (one, other), outcome in found.items() if one == other), key=_mean)
    a, b = min(found, key=lambda shares: found[shares].mean)
    near = [(a - _QUARTER, b), (a + _QUARTER, b), (a, b - _QUARTER), (a, b + _QUARTER)]
    nearer = [fixed(shares) for shares in near if min(shares) >= 0 and max(shares) <= 1]
    return alike, min([found[a, b], *nearer], key=_mean)


def _mean(outcome: Outcome) -> float:
    return outcome.mean


HEAD: Final = (
    "| workload | found: mean s | p99 s | shares | best of one share: mean s | ratio | best of all: mean s | ratio "
    "| its shares |\n|---|---|---|---|---|---|---|---|---|"
)


def line(name: str, found: Outcome, alike: Outcome, best: Outcome) -> str:
    def shown(outcome: Outcome) -> str:
        return ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in outcome.shares.items())

    cells = (
        name,
        f"{found.mean:.2f}",
        f"{found.p99:.2f}",
        shown(found),
        f"{alike.mean:.2f}",
        f"{found.mean / alike.mean:.2f}",
        f"{best.mean:.2f}",
        f"{found.mean / best.mean:.2f}",
        shown(best),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.name for each in ALL]
    parser.add_argument("--workloads", nargs="+", default=names, choices=names, metavar="NAME")
    options = parser.parse_args()
    print(HEAD, flush=True)
    for mixed in ALL:
        if mixed.name in options.workloads:
            print(line(mixed.name, one(mixed), *sweep(mixed)), flush=True)


if __name__ == "__main__":
    main()
