"""A split finds its shares: it goes to where requests cost less, settles, follows, and keeps its bounds."""

import random
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.picker import weights
from headwater_router.picker.split import Answer, Lean, Split, Why

KEYS = range(4000)


def made(**given: int) -> Split:
    split = Split()
    split.offer(given)
    return split


def shares(split: Split) -> dict[str, float]:
    return {name: place.share for name, place in split.places.items()}


def answer(sent: float, cost: float, cached: int | None = None) -> Answer:
    """Of 100 and 9 tokens, which count as 1,000."""
    return Answer(sent, 800 * cost, 200 * cost, 100, 9, cached)


def live(split: Split, cost: Callable[[Mapping[str, float]], Mapping[str, float]], count: int, start: float) -> float:
    """So many requests, each answered at once, at what it costs where it goes. Returns the time at the end."""
    rng, now = random.Random(count), start
    for _ in range(count):
        name, _ = split.choose(rng.getrandbits(64), [*split.places], rng)
        now += 1.0
        split.learn(name, answer(now - 0.5, cost(shares(split))[name] * rng.uniform(0.7, 1.3)), now)
    return now


def crowded(**capacity: float) -> Callable[[Mapping[str, float]], Mapping[str, float]]:
    """Costs that rise with the share, and the slower the more capacity."""
    return lambda share: {name: 1 + share[name] / most for name, most in capacity.items()}


def test_it_begins_by_the_weights() -> None:
    assert shares(made(a=30, b=70)) == {"a": 0.3, "b": 0.7}


def test_all_goes_where_it_always_costs_less() -> None:
    split = made(a=100, b=100)
    live(split, lambda _: {"a": 1.0, "b": 1.5}, 600, 0.0)
    assert shares(split) == {"a": 1.0, "b": 0.0}


def test_costs_that_are_about_alike_move_nothing() -> None:
    split = made(a=100, b=100)
    live(split, lambda _: {"a": 1.0, "b": 1.04}, 3000, 0.0)
    assert shares(split)["a"] == pytest.approx(0.5, abs=0.11)


@pytest.mark.parametrize("capacity", [0.3, 1.0, 3.0])
def test_it_settles_where_costs_are_alike(capacity: float) -> None:
    split = made(a=100, b=100)
    cost = crowded(a=capacity, b=1.0)
    live(split, cost, 4000, 0.0)
    found = cost(shares(split))
    assert max(found.values()) <= 1.25 * min(found.values())


def test_it_follows_when_one_becomes_slower_and_comes_back() -> None:
    split = made(a=100, b=100)
    now = live(split, lambda _: {"a": 1.0, "b": 1.5}, 600, 0.0)
    now = live(split, lambda _: {"a": 3.0, "b": 1.5}, 1500, now)
    assert shares(split) == {"a": 0.0, "b": 1.0}
    # Only those that explore tell that it has recovered.
    live(split, lambda _: {"a": 1.0, "b": 1.5}, 6000, now)
    assert shares(split)["a"] > 0.9


def test_one_look_moves_nothing_and_the_same_again_does() -> None:
    split = made(a=100, b=100)
    leans, found = [], []
    for number in range(64):
        split.learn("ab"[number % 2], answer(0.0, 1 + number % 2), 1.0)
        if number % 16 == 15:
            leans.append(split.lean)
            found.append(shares(split)["a"])
    assert leans[:2] == [Lean.LEANING, Lean.EVEN]
    assert found[:2] == [0.5, 0.6]


def test_what_was_sent_before_a_step_says_nothing_of_what_came_of_it() -> None:
    split = made(a=100, b=100)
    for number in range(32):
        split.learn("ab"[number % 2], answer(0.0, 1 + number % 2), 1.0)
    known = split.places["a"].answers
    split.learn("a", answer(0.9, 100.0), 2.0)
    assert split.places["a"].answers == known
    split.learn("a", answer(1.1, 100.0), 2.0)
    assert split.places["a"].answers > known


def test_who_caches_more_looks_cheaper_not_dearer() -> None:
    split = made(a=100, b=100)
    for _ in range(12):
        split.learn("a", Answer(0.0, 1.0, 0.0, 1000, 5, 900), 1.0)
        split.learn("b", Answer(0.0, 1.5, 0.0, 1000, 5, 0), 1.0)
    a, b = (split.places[name] for name in "ab")
    assert a.cost is not None
    assert b.cost is not None
    assert a.cost < b.cost
    assert (a.cached_share, b.cached_share) == (pytest.approx(0.9), 0.0)


def test_one_answer_that_takes_for_ever_moves_little() -> None:
    split = made(a=100, b=100)
    for number in range(64):
        split.learn("ab"[number % 2], answer(0.0, 1.0), 1.0)
    split.learn("a", answer(0.0, 1e6), 2.0)
    cost = split.places["a"].cost
    assert cost is not None
    assert cost < 1.5


def test_one_answer_of_tokens_that_cannot_be_moves_little() -> None:
    split = made(a=100, b=100)
    for number in range(64):
        split.learn("ab"[number % 2], answer(0.0, 1.0), 1.0)
    split.learn("a", answer(0.0, 1.0)._replace(output_tokens=10**9), 2.0)
    cost = split.places["a"].cost
    assert cost is not None
    assert cost > 0.7


# Who goes where


def test_conversations_go_by_the_shares_and_two_of_a_hundred_by_the_weights() -> None:
    split, rng = made(a=100, b=100), random.Random(0)
    split.places["a"].share, split.places["b"].share = 0.9, 0.1
    chosen = {key: split.choose(key, ["a", "b"], rng) for key in KEYS}
    why = Counter(each for _, each in chosen.values())
    assert why[Why.EXPLORED] == pytest.approx(0.02 * len(KEYS), rel=0.3)
    found = Counter(name for name, each in chosen.values() if each is Why.SHARE)
    assert found["a"] / found.total() == pytest.approx(0.9, abs=0.02)
    by_weight = [("a", 100.0), ("b", 100.0)]
    for key, (name, each) in chosen.items():
        assert each is Why.SHARE or name == weights.choose(by_weight, key, rng)


def test_a_change_moves_only_the_conversations_that_it_must() -> None:
    split, rng = made(a=100, b=100), random.Random(0)
    before = {key: split.choose(key, ["a", "b"], rng)[0] for key in KEYS}
    split.places["a"].share, split.places["b"].share = 0.6, 0.4
    after = {key: split.choose(key, ["a", "b"], rng)[0] for key in KEYS}
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {"a"}
    assert len(moved) == pytest.approx(0.1 * len(KEYS), rel=0.2)


def test_where_those_that_have_a_share_are_away_the_others_answer() -> None:
    split, rng = made(a=100, b=100, c=0), random.Random(0)
    split.places["a"].share, split.places["b"].share = 1.0, 0.0
    assert {split.choose(key, ["b", "c"], rng)[0] for key in range(100)} == {"b"}
    assert split.choose(None, ["c"], rng)[0] == "c"


# Bounds

names = st.sampled_from("abcd")
offers = st.dictionaries(names, st.integers(0, 100), min_size=1)
answers = st.tuples(names, st.floats(0.01, 100.0), st.booleans())


@given(st.lists(st.tuples(offers, st.lists(answers, max_size=120)), min_size=1, max_size=4))
def test_shares_come_to_one_and_keep_their_bounds_whatever_comes(
    life: list[tuple[dict[str, int], list[object]]],
) -> None:
    split, now = Split(), 0.0
    for offered, come in life:
        split.offer(offered)
        for name, cost, late in come:
            now += 1.0
            split.learn(name, answer(now - 5 if late else now, cost), now)
        assert split.places.keys() == offered.keys()
        if not any(offered.values()):
            continue
        assert sum(shares(split).values()) == pytest.approx(1.0)
        for name, place in split.places.items():
            assert -1e-9 <= place.share <= split.most(name) + 1e-9
            assert place.weight or not place.share


def test_a_small_weight_is_a_small_bound() -> None:
    split = made(canary=1, stable=99)
    live(split, lambda _: {"canary": 0.5, "stable": 1.0}, 4000, 0.0)
    assert shares(split) == {"canary": pytest.approx(0.02), "stable": pytest.approx(0.98)}


def test_one_that_comes_begins_with_its_weight_and_the_others_keep_their_ratio() -> None:
    split = made(a=100, b=100)
    split.places["a"].share, split.places["b"].share = 0.9, 0.1
    split.offer({"a": 100, "b": 100, "c": 50})
    assert shares(split) == {"a": pytest.approx(0.72), "b": pytest.approx(0.08), "c": pytest.approx(0.2)}


@given(st.integers(0, 2**64 - 1), st.lists(st.floats(0.01, 1.0), min_size=2, max_size=4))
def test_routers_with_the_same_shares_agree(key: int, given: list[float]) -> None:
    placed = []
    for seed in range(2):
        split = made(**{chr(97 + number): 100 for number in range(len(given))})
        for place, share in zip(split.places.values(), given, strict=True):
            place.share = share
        among = [*split.places] if seed else [*split.places][::-1]
        placed.append(split.choose(key, among, random.Random(seed)))
    assert placed[0] == placed[1]
