"""The index agrees with a naive one through any sequence of dispatches, answers, expiries and losses."""

from collections.abc import Sequence
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.events import AllBlocksCleared, BlockStored
from headwater.prefix import ENDS
from headwater_router.index import PrefixIndex
from headwater_router.index.dispatches import Dispatches
from headwater_router.index.pending import Pending
from headwater_router.index.prefixes import Tickets
from tests.router.indexing import apply, depths, token_depths

TTL = 10.0
CAPACITY = 6

chains = st.sampled_from(
    [tuple(range(length)) for length in range(1, 9)] + [(0, 1, 20, 21), (0, 1, 20, 22, 23), (30,), (30, 31, 32, 33, 34)]
)
holders = st.integers(0, 3)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["send", "send", "share"]), holders, chains),
        st.tuples(st.sampled_from(["answer", "withdraw"]), st.integers(0, 9), st.none()),
        st.tuples(st.just("forget"), holders, st.none()),
        st.tuples(st.just("wait"), st.integers(1, 8), st.none()),
    ),
    max_size=50,
)


class Oracle:
    """What was answered as one list a holder, what is on its way as one list of prompts, searched from end to end."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.on_way: list[tuple[int, int, list[int], float]] = []
        """Number, holder, blocks, and until when it counts."""

    def send(self, number: int, holder: int, chain: tuple[int, ...], until: float) -> None:
        pending = {key for _, each, keys, _ in self.on_way if each == holder for key in keys}
        new = list(chain)
        while new and new[0] in self.held.setdefault(holder, []):
            new.pop(0)
        while len(pending | set(new)) > CAPACITY:
            new.pop()
        self.on_way.append((number, holder, new, until))

    def settle(self, number: int) -> None:
        self.on_way = [each for each in self.on_way if each[0] != number]

    def keep(self, holder: int, chain: tuple[int, ...]) -> None:
        held = [key for key in self.held.setdefault(holder, []) if key not in chain]
        self.held[holder] = [*held, *reversed(chain)][-CAPACITY:]

    def forget(self, holder: int) -> None:
        self.held.pop(holder, None)
        self.on_way = [each for each in self.on_way if each[1] != holder]

    def depth(self, holder: int, chain: tuple[int, ...], now: float) -> int:
        self.on_way = [each for each in self.on_way if each[3] > now]
        known = {key for _, each, keys, _ in self.on_way if each == holder for key in keys}
        return len(list(takewhile(known.union(self.held.get(holder, [])).__contains__, chain)))


@given(steps=steps)
def test_depths_are_those_of_a_naive_index(steps: list[tuple[str, int, tuple[int, ...]]]) -> None:
    index, oracle, now = PrefixIndex(unconfirmed_ttl=TTL), Oracle(), 0.0
    open_: list[tuple[int, int, tuple[int, ...], Tickets]] = []
    for number, (step, holder, chain) in enumerate(steps):
        match step:
            case "send":
                open_.append((number, holder, chain, index.dispatched(str(holder), chain, None, now, CAPACITY)))
                oracle.send(number, holder, chain, now + TTL)
            case "answer" | "withdraw" if open_:
                ticket, of, keys, receipt = open_.pop(holder % len(open_))
                oracle.settle(ticket)
                if step == "withdraw":
                    index.withdrawn(receipt)
                else:
                    index.answered(str(of), keys, receipt)
                    if of in oracle.held:
                        oracle.keep(of, keys)
            case "share":
                index.shared(str(holder), chain, CAPACITY)
                oracle.keep(holder, chain)
            case "forget":
                index.forget(str(holder))
                oracle.forget(holder)
            case "wait":
                now += holder
        for asked in [tuple(range(9)), (0, 1, 20, 21, 22), (0, 1, 20, 22, 23), (30, 31, 32, 33, 34, 35)]:
            found = depths(index, asked, now)
            for each in range(4):
                assert found.get(str(each), 0) == oracle.depth(each, asked, now)
        index.check()


@given(flood=st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60))
def test_prompts_that_engines_turn_down_or_never_answer_push_nothing_out(flood: list[tuple[int, bool]]) -> None:
    index = PrefixIndex(max_entries=400)
    conversation = range(8)
    index.answered("a", conversation, index.dispatched("a", conversation, None, 0.0, 8))
    for number, (blocks, refused) in enumerate(flood):
        sent = index.dispatched("a", range(1000 * (number + 1), 1000 * (number + 1) + blocks), None, 0.0, 8)
        if refused:
            index.withdrawn(sent)
        index.check()
    assert depths(index, conversation, 0.0) == {"a": 8}
    assert index.size().dispatched <= 8 + 8


def test_of_two_prompts_on_their_way_one_may_fail_and_the_other_still_counts() -> None:
    index = PrefixIndex()
    index.dispatched("a", [1, 2, 3], None, 0.0, 10)
    index.withdrawn(index.dispatched("a", [1, 2, 4], None, 0.0, 10))
    assert depths(index, [1, 2, 3, 4], 0.0) == {"a": 3}
    assert depths(index, [1, 2, 4], 0.0) == {"a": 2}


def test_what_is_expected_by_token_ids_outlasts_the_answer_until_the_event_comes() -> None:
    index = PrefixIndex(unconfirmed_ttl=TTL)
    apply(index, "a", 0)
    sent = index.dispatched("a", [], [1, 2], 0.0, 10)
    index.answered("a", [], sent)
    assert token_depths(index, [1, 2, 3], 1.0) == {"a": 2}
    assert token_depths(index, [1, 2, 3], TTL) == {}
    index.withdrawn(index.dispatched("a", [], [1, 2], 20.0, 10))
    assert token_depths(index, [1, 2, 3], 20.0) == {}


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
            apply(index, target, sequences[target], stored)
            sequences[target] += 1
        chain = range(100 * start, 100 * start + length)
        index.answered(target, chain, index.dispatched(target, chain, chain, 0.0, 1000))
        index.dispatched(target, [*chain, 7], [*chain, 7], 0.0, 1000)
        index.shared(target, range(100 * start + 50, 100 * start + 50 + length), 1000)
        index.check()


def test_the_walk_finds_many_endpoints_at_once() -> None:
    index = PrefixIndex()
    for number in range(200):
        index.dispatched(f"pod-{number}", range(number % 50), None, 0.0, 1000)
    assert depths(index, range(50), 0.0) == {f"pod-{number}": number % 50 for number in range(200) if number % 50}


def test_a_target_that_is_forgotten_leaves_nothing_to_its_successor() -> None:
    index = PrefixIndex()
    index.dispatched("old", [1, 2], None, 0.0, 10)
    index.dispatched("other", [1], None, 0.0, 10)
    index.forget("old")
    index.dispatched("new", [7], None, 0.0, 10)
    assert depths(index, [1, 2], 0.0) == {"other": 1}
    assert depths(index, [7], 0.0) == {"new": 1}
    index.check()


def test_heads_outlive_tails_when_room_runs_out() -> None:
    index = PrefixIndex()
    index.dispatched("a", range(10), None, 0.0, 4)
    assert depths(index, range(10), 0.0) == {"a": 4}


def test_our_answers_are_told_and_those_of_other_routers_are_not() -> None:
    index = PrefixIndex()
    told: list[tuple[str, Sequence[int]]] = []
    index.on_answer = lambda target_id, chain: told.append((target_id, chain))
    stranger = index.dispatched("stranger", [1], None, 0.0, 10)
    index.forget("stranger")
    index.answered("stranger", [1], stranger)
    sent = index.dispatched("a", [1, 2], None, 0.0, 10)
    empty = index.dispatched("a", [], None, 0.0, 10)
    assert not told
    index.answered("a", [1, 2], sent)
    index.answered("a", [], empty)
    index.shared("a", [1, 2, 3], 10)
    assert told == [("a", [1, 2])]
    assert depths(index, [1, 2, 3, 4], 1e9) == {"a": 3}


def test_our_own_word_on_the_size_of_a_cache_goes_before_a_guess() -> None:
    index = PrefixIndex()
    index.shared("a", range(8), 4)
    assert depths(index, range(8), 0.0) == {"a": 4}
    index.answered("a", range(8), index.dispatched("a", range(8), None, 0.0, 6))
    index.shared("a", range(8), 4)
    assert depths(index, range(8), 0.0) == {"a": 6}


def test_a_deep_block_takes_the_room_of_many() -> None:
    index = PrefixIndex()
    chain = range(40)
    index.answered("a", chain, index.dispatched("a", chain, None, 0.0, ENDS[36]))
    assert depths(index, chain, 0.0) == {"a": 36}
    index.answered("a", [100], index.dispatched("a", [100], None, 0.0, ENDS[36]))
    assert depths(index, chain, 0.0) == {"a": 35}
    index.check()


def test_check_notices_a_table_that_disagrees() -> None:
    dispatches, pending = Dispatches(), Pending(1.0)
    dispatches.add(0, [1], 5, 5)
    pending.add(0, [1], {}, 0.0, 5)
    for table in (dispatches, pending):
        table.masks[1] |= 2
        with pytest.raises(AssertionError):
            table.check()


def test_an_empty_cache_forgets_what_was_dispatched_but_a_repeated_snapshot_does_not() -> None:
    index = PrefixIndex()
    index.dispatched("a", [1, 2], None, 0.0, 10)
    snapshot = BlockStored([1], None, list(range(16)), 16, None, "CPU", None)
    apply(index, "a", 0, AllBlocksCleared(), snapshot)
    assert depths(index, [1, 2], 0.0) == {"a": 2}
    apply(index, "a", 1, AllBlocksCleared())
    assert depths(index, [1, 2], 0.0) == {}


def test_who_was_heard_from_the_start_is_complete_until_a_message_is_lost() -> None:
    index = PrefixIndex()
    apply(index, "early", 0)
    apply(index, "late", 17)
    assert (index.complete("early"), index.complete("late"), index.complete("silent")) == (True, False, False)
    apply(index, "early", 2)
    apply(index, "late", 18, AllBlocksCleared())
    assert (index.complete("early"), index.complete("late")) == (False, True)
    assert index.size().gaps == 1
