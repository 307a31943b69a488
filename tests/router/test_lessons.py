"""All routers learn from the answers of all how fast engines are."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Others, Prompt, Target
from headwater_router.picker.learned import Lesson
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.picker.speed import Stretch
from headwater_router.picker.targets import Targets
from headwater_router.replicas.message import Took, encode
from tests.router.indexing import exhaust
from tests.router.talking import ENGINES, Channel, Router


def asks(router: Router, engine: str, took: float, now: float) -> None:
    """A request, of which each token took so long as many times as another engine takes."""
    picker = router.policies.of(None)
    rng = random.Random(now)
    prompt, output = Prompt("m", [], rng.randrange(200, 2000)), rng.randrange(50, 400)
    decision = picker.pick(prompt, Targets([router.targets[engine]], "ours"), now)
    began = now + took * (0.02 + 1e-5 * prompt.tokens)
    picker.first_token(decision, began)
    picker.finished(decision, began + took * 0.01 * (output - 1), Outcome.ANSWERED, 0, output)


def sends_once(router: Router, now: float) -> None:
    """To each engine, and learns nothing from it."""
    picker = router.policies.of(None)
    for target in router.targets.values():
        picker.finished(picker.pick(Prompt("m", [], 100), Targets([target], "ours"), now), now, Outcome.UNSENT)


def factors(router: Router) -> list[float | None]:
    found = (router.policies.speed(target.id) for target in router.targets.values())
    return [speed and speed.factor for speed in found]


def test_all_learn_from_the_answers_of_all_how_fast_engines_are() -> None:
    one, other, idle = Router("one"), Router("other"), Router("idle")
    channel = Channel(one, other, idle)
    channel.lost = lambda: random.Random(channel.now).random() < 0.1
    channel.run(0.1)
    sends_once(other, channel.now)
    for _ in range(100):
        for engine in ENGINES:
            asks(one, engine, 3.0 if engine == "a" else 1.0, channel.now)
        channel.run(0.5)
    slow, *quick = (factor or 0.0 for factor in factors(other))
    assert all(slow > 2.5 * each > 0 for each in quick)
    assert factors(other) == pytest.approx(factors(one), rel=0.1)
    assert factors(idle) == [None, None, None], "it has sent nothing anywhere"


def test_what_is_told_of_a_rank_or_of_strangers_teaches_nothing_of_the_whole() -> None:
    router = Router("one")
    channel = Channel(router)
    sends_once(router, channel.now)
    for took in (
        Took("a", "ours", "m", 1.0, [1, 0, 0, 0, 100], rank=1),
        Took("gone", "ours", "m", 1.0, [1, 0, 0, 0, 100]),
        Took("a", "theirs", "m", 1.0, [1, 0, 0, 0, 100]),
        Took("a", "ours", "another", 1.0, [1, 0, 0, 0, 100]),
    ):
        exhaust(router.replica.incoming(encode("other", [took]), channel.now))
    assert factors(router) == [None, None, None]
    exhaust(router.replica.incoming(encode("other", [Took("a", "ours", "m", 1.0, [1, 0, 0, 0, 100])]), channel.now))
    assert factors(router)[0] is not None
    assert router.malformed.value == 0


def test_a_router_that_has_sent_little_tells_near_from_far_by_what_others_learned() -> None:
    """Its first requests were taken to last many times as long as they do, and twelve answers to make no difference."""
    rng, now = random.Random(1), 1.0
    picker = make("prefix", PrefixIndex(), rng)
    assert isinstance(picker, PrefixPicker)
    quiet, busy = Target("quiet"), Target("busy")
    quiet.load.others, busy.load.others = Others(0, 0, 0), Others(12, 0, 0, 6_000)
    prompt = Prompt("m", [], 500)
    for target in (quiet, busy):
        picker.finished(picker.pick(prompt, [target], now), now, Outcome.UNSENT)
    for _ in range(300):
        answers, steps, tokens = rng.randrange(40), rng.randrange(50, 400), rng.randrange(100, 3000)
        for first, rest, seconds in (
            (1.0, 0.0, 0.005 + 5e-5 * answers + 2e-5 * tokens),
            (0.0, float(steps), steps * (0.005 + 5e-5 * answers)),
        ):
            stretch = Stretch(first, rest, answers * max(first, rest), 0.0, first * tokens)
            target = rng.choice([quiet, busy])
            picker.learned.take(Lesson("", "m", target, stretch, seconds), now)
    chosen = Counter[str]()
    for _ in range(40):
        decision = picker.pick(prompt, [quiet, busy], now)
        chosen[decision.target.id] += 1
        picker.finished(decision, now, Outcome.UNSENT)
    assert chosen == {"quiet": 40}


@pytest.mark.parametrize(
    ("seconds", "stretch"),
    [
        (-1.0, [1, 0, 0, 0, 100]),
        (float("nan"), [1, 0, 0, 0, 100]),
        (float("inf"), [1, 0, 0, 0, 100]),
        (1e300, [1, 0, 0, 0, 100]),
        (1.0, [1, 0, 0, 100]),
        (1.0, [1, 0, 0, 0, 100, 1]),
        (1.0, [1, 0, 0, 0, float("nan")]),
        (1.0, [1, 0, 0, -1, 100]),
        ("1", [1, 0, 0, 0, 100]),
    ],
)
def test_times_that_cannot_be_are_malformed(seconds: object, stretch: list[float]) -> None:
    router = Router("one")
    sends_once(router, 0.0)
    data = msgspec.msgpack.encode(["other", ["took.1", "a", "ours", "m", seconds, stretch]])
    exhaust(router.replica.incoming(data, 0.0))
    assert router.malformed.value == 1
    assert factors(router) == [None, None, None]


@given(st.lists(st.tuples(st.floats(0, 2**53), st.lists(st.floats(0, 2**53), min_size=5, max_size=5)), max_size=80))
def test_whatever_times_are_told_costs_stay_numbers(told: list[tuple[float, list[float]]]) -> None:
    router = Router("one")
    sends_once(router, 0.0)
    took = [Took("a", "ours", "m", seconds, stretch) for seconds, stretch in told]
    exhaust(router.replica.incoming(encode("other", took), 0.0))
    assert router.malformed.value == 0
    decision = router.policies.of(None).pick(Prompt("m", [], 500), list(router.targets.values()), 1.0)
    assert decision.predicted_ttft is None or 0 <= decision.predicted_ttft < float("inf")
