"""The index agrees with a naive one through any sequence of dispatches, answers, expiries and losses."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch
from headwater_router.index import PrefixIndex
from headwater_router.index.dispatches import Dispatches

TTL = 10.0
CAPACITY = 6

chains = st.sampled_from(
    [tuple(range(length)) for length in range(1, 9)] + [(0, 1, 20, 21), (0, 1, 20, 22, 23), (30,), (30, 31, 32, 33, 34)]
)
holders = st.integers(0, 3)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["add", "confirm", "share", "withdraw"]), holders, chains),
        st.tuples(st.just("forget"), holders, st.none()),
        st.tuples(st.just("wait"), st.integers(1, 8), st.none()),
    ),
    max_size=50,
)


class Oracle:
    """One list a holder, searched from end to end."""

    def __init__(self) -> None:
        self.held: dict[int, OrderedDict[int, float]] = {holder: OrderedDict() for holder in range(4)}

    def touch(self, holder: int, chain: tuple[int, ...], until: float) -> None:
        for key in reversed(chain):
            self.held[holder][key] = max(until, self.held[holder].pop(key, 0.0))
        while len(self.held[holder]) > CAPACITY:
            del self.held[holder][next(iter(self.held[holder]))]

    def withdraw(self, holder: int, chain: tuple[int, ...]) -> None:
        for key in chain:
            if self.held[holder].get(key, math.inf) < math.inf:
                del self.held[holder][key]

    def depth(self, holder: int, chain: tuple[int, ...], now: float) -> int:
        return len(list(takewhile(lambda key: self.held[holder].get(key, 0.0) > now, chain)))


@given(steps=steps)
def test_depths_are_those_of_a_naive_index(steps: list[tuple[str, int, tuple[int, ...]]]) -> None:
    index, oracle, now = PrefixIndex(unconfirmed_ttl=TTL), Oracle(), 0.0
    for step, holder, chain in steps:
        name = str(holder)
        match step:
            case "add":
                index.dispatched(name, chain, None, now, CAPACITY)
                oracle.touch(holder, chain, now + TTL)
            case "confirm":
                # As after any pick; the index takes no answers of endpoints that it does not know.
                index.dispatched(name, chain, None, now, CAPACITY)
                index.answered(name, chain)
                oracle.touch(holder, chain, math.inf)
            case "share":
                index.shared(name, chain, CAPACITY)
                oracle.touch(holder, chain, math.inf)
            case "withdraw":
                index.withdrawn(name, chain, None)
                oracle.withdraw(holder, chain)
            case "forget":
                index.forget(name)
                oracle.held[holder].clear()
            case "wait":
                now += holder
        index.check()
        for asked in [tuple(range(9)), (0, 1, 20, 21, 22), (0, 1, 20, 22, 23), (30, 31, 32, 33, 34, 35)]:
            found = index.match(asked, now)
            for number in range(4):
                assert found.get(str(number), 0) == oracle.depth(number, asked, now)


@given(
    steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 30), st.integers(1, 20)), max_size=80),
    followed=st.booleans(),
)
def test_entries_never_exceed_the_limit(steps: list[tuple[str, int, int]], followed: bool) -> None:
    index = PrefixIndex(max_entries=48)
    sequences = dict.fromkeys("abcdef", 0)
    for target, start, length in steps:
        if followed:
            ids = list(range(start, start + 16 * length))
            stored = BlockStored([start * 100 + block for block in range(length)], None, ids, 16, None, None, None)
            index.apply(target, sequences[target], EventBatch(0.0, [stored]))
            sequences[target] += 1
        chain = range(100 * start, 100 * start + length)
        index.dispatched(target, chain, chain, 0.0, 1000)
        index.answered(target, chain)
        index.shared(target, range(100 * start + 50, 100 * start + 50 + length), 1000)
        index.check()


def test_the_walk_finds_many_endpoints_at_once() -> None:
    index = PrefixIndex()
    for number in range(200):
        index.dispatched(f"pod-{number}", range(number % 50), None, 0.0, 1000)
    assert index.match(range(50), 0.0) == {f"pod-{number}": number % 50 for number in range(200) if number % 50}


def test_a_target_that_is_forgotten_leaves_nothing_to_its_successor() -> None:
    index = PrefixIndex()
    index.dispatched("old", [1, 2], None, 0.0, 10)
    index.dispatched("other", [1], None, 0.0, 10)
    index.forget("old")
    index.dispatched("new", [7], None, 0.0, 10)
    assert index.match([1, 2], 0.0) == {"other": 1}
    assert index.match([7], 0.0) == {"new": 1}
    index.check()


def test_heads_outlive_tails_when_room_runs_out() -> None:
    index = PrefixIndex()
    index.dispatched("a", range(10), None, 0.0, 4)
    assert index.match(range(10), 0.0) == {"a": 4}


def test_our_answers_are_told_and_those_of_other_routers_are_not() -> None:
    index = PrefixIndex()
    told: list[tuple[str, Sequence[int]]] = []
    index.on_answer = lambda target_id, chain: told.append((target_id, chain))
    index.answered("stranger", [1])
    index.dispatched("a", [1, 2], None, 0.0, 10)
    index.dispatched("a", [], None, 0.0, 10)
    assert not told
    index.answered("a", [1, 2])
    index.answered("a", [])
    index.shared("a", [1, 2, 3], 10)
    assert told == [("a", [1, 2])]
    assert index.match([1, 2, 3, 4], 1e9) == {"a": 3}


def test_our_own_word_on_the_size_of_a_cache_goes_before_a_guess() -> None:
    index = PrefixIndex()
    index.shared("a", range(8), 4)
    assert index.match(range(8), 0.0) == {"a": 4}
    index.dispatched("a", range(8), None, 0.0, 6)
    index.shared("a", range(8), 4)
    assert index.match(range(8), 0.0) == {"a": 6}


def test_check_notices_a_table_that_disagrees() -> None:
    dispatches = Dispatches(1.0)
    dispatches.add(0, [1], 0.0, 5)
    dispatches.masks[1] |= 2
    with pytest.raises(AssertionError):
        dispatches.check()


def batch(*events: BlockStored | BlockRemoved | AllBlocksCleared, rank: int = 0) -> EventBatch:
    return EventBatch(0.0, list(events), rank)


def test_an_empty_cache_forgets_what_was_dispatched_but_a_repeated_snapshot_does_not() -> None:
    index = PrefixIndex()
    index.dispatched("a", [1, 2], None, 0.0, 10)
    snapshot = BlockStored([1], None, list(range(16)), 16, None, "CPU", None)
    index.apply("a", 0, batch(AllBlocksCleared(), snapshot))
    assert index.match([1, 2], 0.0) == {"a": 2}
    index.apply("a", 1, batch(AllBlocksCleared()))
    assert index.match([1, 2], 0.0) == {}


def test_who_was_heard_from_the_start_is_complete_until_a_message_is_lost() -> None:
    index = PrefixIndex()
    index.apply("early", 0, batch())
    index.apply("late", 17, batch())
    assert (index.complete("early"), index.complete("late"), index.complete("silent")) == (True, False, False)
    index.apply("early", 2, batch())
    index.apply("late", 18, batch(AllBlocksCleared()))
    assert (index.complete("early"), index.complete("late")) == (False, True)
    assert index.size().gaps == 1
