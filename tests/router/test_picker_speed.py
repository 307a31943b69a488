"""What engines cost is learned from few answers, apart from one another, and not from accidents."""

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from headwater_router.picker.speed import Factor, Lengths, Pace, Stretch, liken

COSTS = (0.01, 0.005, 5e-5, 4e-8, 3e-5)
"""Of an 8B model on a large GPU."""


def stretch(rng: random.Random, *, streamed: bool = True) -> list[Stretch]:
    """Of one request: up to its first token, and from there; both in one where it is not streamed."""
    answers, context, steps = rng.randrange(0, 60), rng.randrange(0, 200_000), rng.randrange(20, 600)
    first = Stretch(1.0, 0.0, answers, context, rng.randrange(10, 9000))
    rest = Stretch(0.0, steps, answers * steps, context * steps, rng.randrange(0, 40_000))
    both = Stretch(*[a + b for a, b in zip(astuple(first), astuple(rest), strict=True)])
    return [first, rest] if streamed else [both]


def seconds(each: Stretch, costs: tuple[float, ...] = COSTS) -> float:
    return sum(one * cost for one, cost in zip(astuple(each), costs, strict=True))


def taught(answers: int = 500, *, streamed: bool = True, noise: float = 0.1) -> tuple[Pace, Factor]:
    rng, pace, factor = random.Random(1), Pace(), Factor()
    for _ in range(answers):
        for each in stretch(rng, streamed=streamed):
            pace.learn(each, seconds(each) * rng.lognormvariate(0, noise), factor)
    return pace, factor


@pytest.mark.parametrize("streamed", [True, False])
def test_the_costs_that_make_up_an_answer_are_told_apart(streamed: bool) -> None:
    """Also where no first token is seen."""
    pace, _ = taught(streamed=streamed)
    assert pace.costs[1:] == pytest.approx(COSTS[1:], rel=0.15)


@pytest.mark.parametrize("streamed", [True, False])
def test_what_was_learned_predicts_what_comes_next(streamed: bool) -> None:
    pace, _ = taught(streamed=streamed)
    rng = random.Random(2)
    for _ in range(100):
        for each in stretch(rng, streamed=streamed):
            assert pace.seconds(each) == pytest.approx(seconds(each), rel=0.2)


def test_a_constant_cost_is_not_taken_for_one_of_each_answer() -> None:
    """A quiet engine would look slow beside a busy one: its steps are shared by few."""
    pace, _ = taught()
    quiet, busy = Stretch(0, 100, 0, 0, 0), Stretch(0, 100, 5000, 0, 0)
    assert pace.seconds(quiet) == pytest.approx(0.5, rel=0.1)
    assert pace.seconds(busy) == pytest.approx(0.75, rel=0.1)


def test_one_stall_changes_little() -> None:
    pace, factor = taught()
    before = list(pace.costs)
    pace.learn(Stretch(1, 0, 10, 10_000, 1000), 300.0, factor)
    for _ in range(40):
        for each in stretch(random.Random(3)):
            pace.learn(each, seconds(each), factor)
    assert pace.costs == pytest.approx(before, rel=0.5)


def test_an_engine_that_became_slow_is_believed_after_a_few_answers_and_so_is_one_that_became_quick() -> None:
    pace, factor = taught()
    rng = random.Random(4)
    for times, most in ((3.0, 0.4), (1.0, 0.4)):
        for _ in range(40):
            for each in stretch(rng):
                pace.learn(each, times * seconds(each), factor)
        each = stretch(rng)[1]
        predicted = pace.seconds(each) * factor.beside(pace.usual)
        assert predicted == pytest.approx(times * seconds(each), rel=most)


def test_engines_that_are_alike_have_one_factor_whatever_the_noise() -> None:
    rng, pace = random.Random(5), Pace()
    factors = [Factor() for _ in range(8)]
    for _ in range(300):
        for factor in factors:
            for each in stretch(rng):
                pace.learn(each, seconds(each) * rng.lognormvariate(0, 0.3), factor)
    assert len({factor.beside(pace.usual) for factor in factors}) == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_a_slow_engine_among_others_has_a_factor_of_its_own(streamed: bool) -> None:
    rng, pace = random.Random(6), Pace()
    quick, slow = Factor(), Factor()
    for _ in range(300):
        for factor, times in ((quick, 1.0), (slow, 2.5)):
            for each in stretch(rng, streamed=streamed):
                pace.learn(each, times * seconds(each), factor)
    assert slow.beside(pace.usual) / quick.beside(pace.usual) == pytest.approx(2.5, rel=0.15)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.floats(0, 1e5),
            st.floats(0, 1e7),
            st.floats(0, 1e10),
            st.floats(0, 1e6),
            st.sampled_from([0.0, 1e-6, 0.01, 1.0, 600.0]),
        ),
        max_size=120,
    )
)
def test_nothing_that_is_told_makes_a_cost_that_is_none(told: list[tuple[float, ...]]) -> None:
    pace, factor = Pace(), Factor()
    for *each, took in told:
        pace.learn(Stretch(*each), took, factor)
        assert all(math.isfinite(cost) and cost >= 0 for cost in pace.costs)
        assert pace.costs[4] > 0
        assert math.isfinite(factor.beside(pace.usual))


def test_answers_to_prompts_that_begin_alike_are_as_long_as_one_another() -> None:
    rng, lengths = random.Random(7), Lengths()
    for _ in range(200):
        lengths.learn(1, round(8 * rng.lognormvariate(0, 0.3)))
        lengths.learn(2, round(1200 * rng.lognormvariate(0, 0.3)))
    assert lengths.expected(1) == pytest.approx(20, abs=15)
    assert lengths.expected(2) == pytest.approx(1200, rel=0.15)
    assert lengths.expected(3) == pytest.approx(600, rel=0.2) == lengths.expected(None)


@pytest.mark.parametrize("beginning", [1, None])
def test_one_answer_of_a_million_tokens_changes_little_and_answers_that_become_long_are_followed(
    beginning: int | None,
) -> None:
    lengths = Lengths()
    for _ in range(100):
        lengths.learn(beginning, 200)
    lengths.learn(beginning, 2**20 - 1)
    assert lengths.expected(beginning) < 400
    for _ in range(300):
        lengths.learn(beginning, 20_000)
    assert lengths.expected(beginning) > 15_000


def test_beginnings_without_end_are_not_kept() -> None:
    lengths = Lengths()
    for number in range(10_000):
        lengths.learn(number, 100)
    assert len(lengths._by_beginning) == 4096


def test_an_engine_that_answers_nonsense_at_once_does_not_look_endlessly_quick() -> None:
    pace, honest = taught()
    liar, rng = Factor(), random.Random(8)
    for _ in range(500):
        for each in stretch(rng):
            pace.learn(each, seconds(each), honest)
            pace.learn(each, 0.0, liar)
    assert liar.beside(pace.usual) == 1 / 8
    assert honest.beside(pace.usual) > 1 / 2


@pytest.mark.parametrize("told", [Pace.learn, Pace.measure], ids=["by its answers", "by its histogram"])
def test_a_lie_about_tokens_counts_for_no_longer_than_the_time_that_it_was_told_of(
    told: Callable[[Pace, Stretch, float, Factor], None],
) -> None:
    pace, factor = taught()
    for _ in range(3):
        told(pace, Stretch(0, 1 << 20, 0, 0, 0), 1.0, factor)
    assert factor.own < 1
    rng = random.Random(9)
    for _ in range(30):
        for each in stretch(rng):
            pace.learn(each, seconds(each), factor)
    assert factor.own == pytest.approx(1.0, rel=0.2)


def factor_of(own: float) -> Factor:
    factor = Factor()
    factor.own = own
    return factor


def test_two_kinds_of_engines_are_two_speeds_and_the_mean_of_both_is_neither() -> None:
    quick, slow = [factor_of(each) for each in (0.9, 1.0, 1.1)], [factor_of(each) for each in (2.0, 2.2)]
    liken([*quick, *slow])
    assert [each.beside(1.5) for each in quick] == pytest.approx([1.0] * 3)
    assert [each.beside(1.5) for each in slow] == pytest.approx([2.1] * 2)


@given(st.lists(st.floats(1 / 8, 100), max_size=40))
def test_engines_count_as_alike_where_they_are_near_and_the_order_of_the_others_stays(owns: list[float]) -> None:
    factors = [factor_of(own) for own in sorted(owns)]
    liken(factors)
    likes = [each.like for each in factors]
    assert all(after >= before - 1e-9 for before, after in pairwise(likes))
    assert sum(likes) == pytest.approx(sum(owns))
    for each in factors:
        assert each.own / 1.5 <= each.like <= each.own * 1.5
    if owns and max(owns) < 1.5 * min(owns):
        assert len(set(likes)) == 1
