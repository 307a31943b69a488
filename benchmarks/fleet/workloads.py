"""What fleets are tried with: a generator each, with its rate for eight engines of an 8B model on an H100.

Rates are such that the engines are busy and do not drown, but where the name says otherwise.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Final

from benchmarks.fleet.hardware import CPU_135M, H100_8B, H100_70B
from benchmarks.fleet.requests import Request, around, arrivals, fresh, shared
from benchmarks.fleet.simulation import Event, Workload

SECONDS: Final = 160.0


def hot_prefix(rng: random.Random, per_second: float = 20.0) -> Iterator[Request]:
    """Many users of one application: 4,000 tokens in common, 200 of one's own, 600 out."""
    system = shared("hot", 4000)
    for at in arrivals(rng, per_second, SECONDS):
        yield Request(at, system + fresh(rng, around(rng, 200)), fresh(rng, around(rng, 600)))


def groups(rng: random.Random) -> Iterator[Request]:
    """150 prefixes of 6,000 tokens, 1,200 of one's own, 1,000 out at most: llm-d's published shape."""
    for at in arrivals(rng, 24.0, SECONDS):
        system = shared(f"group {rng.randrange(150)}", 6000)
        yield Request(at, system + fresh(rng, 1200), fresh(rng, around(rng, 250)))


class _Conversation:
    """A user's turns, each the whole conversation so far and a new question."""

    def __init__(self, rng: random.Random, history: bytes, turns: int, question: float, answer: float, pause: float):
        self._rng = rng
        self._history = history
        self._turns = turns
        self._question, self._answer, self._pause = question, answer, pause
        self._session = f"{rng.getrandbits(64):x}"

    def turn(self, at: float) -> Request | None:
        if not self._turns:
            return None
        self._turns -= 1
        rng = self._rng
        prompt = self._history + fresh(rng, around(rng, self._question))
        answer = fresh(rng, around(rng, self._answer))
        self._history = prompt + answer
        return Request(at, prompt, answer, session=self._session, then=self._later)

    def _later(self, now: float) -> Request | None:
        return self.turn(now + self._rng.expovariate(1 / self._pause) if self._pause else now)


def _chats(
    rng: random.Random, rate: float, name: str, systems: int, system: int, turns: range, *sizes: float
) -> Iterator[Request]:
    """Behind one of so many system prompts of `system` tokens. `sizes`: as `_Conversation` has them."""
    for at in arrivals(rng, rate, SECONDS):
        own = random.Random(rng.getrandbits(64))
        history = shared(f"{name} {own.randrange(systems)}", system)
        first = _Conversation(own, history, own.choice(turns), *sizes).turn(at)
        assert first is not None
        yield first


def conversations(rng: random.Random) -> Iterator[Request]:
    """Chats of four to twelve turns behind one of ten system prompts; people think for half a minute."""
    return _chats(rng, 5.0, "chat", 10, 800, range(4, 13), 150, 300, 15.0)


def agents(rng: random.Random) -> Iterator[Request]:
    """Tasks of many short calls at once after one another, tools and instructions of 3,000 tokens in common; each call
    adds what a tool said, and now and then the task branches: the same history goes on in two ways."""
    system = shared("agents", 3000)
    for at in arrivals(rng, 2.0, SECONDS):
        own = random.Random(rng.getrandbits(64))
        history = system + fresh(own, around(own, 1500))
        for branch in range(own.choice((1, 1, 2, 4))):
            seeded = random.Random(own.getrandbits(64))
            first = _Conversation(seeded, history, seeded.randrange(4, 16), 400, 120, 0.3).turn(at + 0.01 * branch)
            assert first is not None
            yield first


def rag(rng: random.Random) -> Iterator[Request]:
    """A template, then four of 500 passages in any order, popular ones more often: little is shared behind the
    template."""
    template = shared("rag", 600)
    for at in arrivals(rng, 30.0, SECONDS):
        passages = [shared(f"passage {min(int(rng.paretovariate(0.8)), 500)}", 700) for _ in range(4)]
        yield Request(at, template + b"".join(passages) + fresh(rng, around(rng, 60)), fresh(rng, around(rng, 250)))


def unique(rng: random.Random) -> Iterator[Request]:
    """Nothing in common."""
    for at in arrivals(rng, 40.0, SECONDS):
        yield Request(at, fresh(rng, around(rng, 1000)), fresh(rng, around(rng, 400)))


def documents(rng: random.Random) -> Iterator[Request]:
    """Questions on documents of 30,000 to 128,000 tokens, three on each, between short chats."""
    for at in arrivals(rng, 3.5, SECONDS):
        if rng.random() > 0.08:
            yield Request(at, fresh(rng, around(rng, 800)), fresh(rng, around(rng, 300)))
            continue
        own = random.Random(rng.getrandbits(64))
        document = fresh(own, own.randrange(30_000, 128_000))
        first = _Conversation(own, document, 3, 50, 300, 10.0).turn(at)
        assert first is not None
        yield first


def bursts(rng: random.Random) -> Iterator[Request]:
    """Quiet, and forty requests at once every four seconds, behind one of twenty prefixes."""
    number = count()
    for at in arrivals(rng, 0.25, SECONDS):
        system = shared(f"burst {next(number) % 20}", 2000)
        for _ in range(40):
            at += 0.001
            yield Request(at, system + fresh(rng, around(rng, 300)), fresh(rng, around(rng, 200)))


def two_speeds(rng: random.Random) -> Iterator[Request]:
    """Half of the engines are of another kind, 0.4 as fast; 60 applications."""
    for at in arrivals(rng, 16.0, SECONDS):
        system = shared(f"two {rng.randrange(60)}", 2500)
        yield Request(at, system + fresh(rng, around(rng, 500)), fresh(rng, around(rng, 300)))


def not_streamed(rng: random.Random, per_second: float = 40.0) -> Iterator[Request]:
    """Extraction: whole answers, 100 forms of 1,500 tokens."""
    for at in arrivals(rng, per_second, SECONDS):
        form = shared(f"form {rng.randrange(100)}", 1500)
        yield Request(at, form + fresh(rng, around(rng, 1000)), fresh(rng, around(rng, 150)), streamed=False)


def not_streamed_slow(rng: random.Random) -> Iterator[Request]:
    return not_streamed(rng, 24.0)


def mixed_outputs(rng: random.Random) -> Iterator[Request]:
    """Two applications: one wants a word, the other a page."""
    for at in arrivals(rng, 30.0, SECONDS):
        if rng.random() < 0.7:
            yield Request(at, shared("classify", 1200) + fresh(rng, around(rng, 300)), fresh(rng, around(rng, 8)))
        else:
            yield Request(at, shared("write", 1200) + fresh(rng, around(rng, 300)), fresh(rng, around(rng, 1200)))


def heavy(rng: random.Random) -> Iterator[Request]:
    """About what the engines can do, with 40 prefixes."""
    for at in arrivals(rng, 60.0, SECONDS / 2):
        system = shared(f"over {rng.randrange(40)}", 3000)
        yield Request(at, system + fresh(rng, around(rng, 1000)), fresh(rng, around(rng, 300)))


def adapters(rng: random.Random) -> Iterator[Request]:
    """Thirty adapters, of which each engine has room for eight."""
    for at in arrivals(rng, 20.0, SECONDS):
        name = f"adapter-{min(int(rng.paretovariate(0.7)), 30)}"
        prompt = shared(name, 800) + fresh(rng, around(rng, 400))
        yield Request(at, prompt, fresh(rng, around(rng, 200)), adapter=name)


def coming_and_going(rng: random.Random) -> Iterator[Request]:
    """Chats, while engines die, come back empty, and a further one joins."""
    return conversations(rng)


def groups_70b(rng: random.Random) -> Iterator[Request]:
    """40 groups on eight times four H100."""
    for at in arrivals(rng, 8.0, SECONDS):
        system = shared(f"large {rng.randrange(40)}", 6000)
        yield Request(at, system + fresh(rng, 1200), fresh(rng, around(rng, 250)))


def chats_on_cpus(rng: random.Random) -> Iterator[Request]:
    """Small models on eight machines of two cores."""
    return _chats(rng, 1.0, "small", 6, 300, range(2, 6), 60, 100, 8.0)


def many_engines(rng: random.Random, per_second: float = 130.0, seconds: float = SECONDS / 4) -> Iterator[Request]:
    """600 groups and eight times the traffic."""
    for at in arrivals(rng, per_second, seconds):
        system = shared(f"many {min(int(rng.paretovariate(0.6)), 600)}", 3000)
        yield Request(at, system + fresh(rng, around(rng, 700)), fresh(rng, around(rng, 300)))


def hundreds_of_engines(rng: random.Random) -> Iterator[Request]:
    """The same, and four times as many of all."""
    return many_engines(rng, 520.0, SECONDS / 8)


_ADAPTERS: Final = tuple(f"adapter-{number}" for number in range(1, 31))
_COMING_AND_GOING: Final = (
    Event(40.0, 0, False),
    Event(70.0, 0, True),
    Event(60.0, 7, True),
    Event(100.0, 3, False),
    Event(130.0, 3, True),
    Event(140.0, 5, False),
)

ALL: Final = (
    Workload("hot prefix", hot_prefix),
    Workload("150 groups", groups),
    Workload("150 groups, two ranks each", groups, speeds=(1.0,) * 4, ranks=2),
    Workload("150 groups, two addressed ranks each", groups, speeds=(1.0,) * 4, ranks=2, addressed=True),
    Workload("conversations", conversations),
    Workload("conversations, four ranks each", conversations, speeds=(1.0,) * 2, ranks=4),
    Workload("conversations, four addressed ranks each", conversations, speeds=(1.0,) * 2, ranks=4, addressed=True),
    Workload("agents", agents),
    Workload("RAG", rag),
    Workload("unique", unique),
    Workload("long documents", documents, ttft_objective=5.0),
    Workload("bursts", bursts),
    Workload("two speeds", two_speeds, speeds=(1.0,) * 4 + (0.4,) * 4),
    Workload("not streamed", not_streamed),
    Workload("not streamed, two speeds", not_streamed_slow, speeds=(1.0,) * 4 + (0.4,) * 4),
    Workload("mixed outputs", mixed_outputs),
    Workload("heavy load", heavy, hardware=replace(H100_8B, max_waiting=64)),
    Workload("coming and going", coming_and_going, events=_COMING_AND_GOING),
    Workload("adapters", adapters, adapters=8, adapter_names=_ADAPTERS),
    Workload("70B groups", groups_70b, hardware=H100_70B, token_objective=0.05, ttft_objective=2.0),
    Workload("CPU chats", chats_on_cpus, hardware=CPU_135M, token_objective=0.1, ttft_objective=2.0),
    Workload("64 engines", many_engines, speeds=(1.0,) * 64),
    Workload("256 engines", hundreds_of_engines, speeds=(1.0,) * 256),
)
