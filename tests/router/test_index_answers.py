"""Answers take room in an endpoint's cache, as an engine's own does: what it is believed to hold agrees with a naive
list in order of use."""

import random
from collections.abc import Sequence
from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from headwater_router.index import PrefixIndex
from headwater_router.index.dispatches import Dispatches
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Picker, Prompt, Target
from tests.router.indexing import depths

CAPACITY = 12
"""Units, and with these short chains blocks."""

Chain = tuple[int, ...]

chains = st.sampled_from(
    [tuple(range(length)) for length in range(9)] + [(0, 1, 20, 21), (0, 1, 20, 22, 23), (30,), (30, 31, 32, 33, 34)]
)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["begin", "begin", "share"]), chains, st.just(0)),
        st.tuples(st.just("whole"), chains, st.integers(0, 15)),
        st.tuples(st.just("end"), st.integers(0, 9).map(lambda place: (place,)), st.integers(0, 15)),
    ),
    max_size=60,
)


class Oracle:
    """Entries from the longest unused one on: blocks by their hashes, answers as (last block of the prompt, units)."""

    def __init__(self) -> None:
        self.entries: list[int | tuple[int | None, int]] = []
        self.answering: dict[int, Chain] = {}

    @property
    def units(self) -> int:
        return sum(each[1] if isinstance(each, tuple) else 1 for each in self.entries)

    def use(self, chain: Chain) -> None:
        known = [key for key in chain if key in self.entries]
        self.entries = [*(each for each in self.entries if each not in chain), *reversed(chain)]
        if known and len(known) < len(chain):
            self._go_on(chain[len(known) - 1], len(chain) - len(known))
        while self.units > CAPACITY:
            self._let_go()

    def _go_on(self, tail: int, units: int) -> None:
        behind = [each for each in self.entries if isinstance(each, tuple) and each[0] == tail]
        if behind and behind[-1][1] <= units + 1:
            self.entries.reverse()
            self.entries.remove(behind[-1])
            self.entries.reverse()

    def _let_go(self) -> None:
        oldest = self.entries[0]
        if isinstance(oldest, int) and (chain := self.answering.pop(oldest, None)):
            kept = [key for key in reversed(chain) if key in self.entries]
            self.entries = [*(each for each in self.entries if each not in kept), *kept]
        else:
            del self.entries[0]

    def begin(self, chain: Chain) -> None:
        self.use(chain)
        if chain:
            self.answering[chain[-1]] = chain

    def end(self, chain: Chain, units: int) -> None:
        if chain:
            self.answering.pop(chain[-1], None)
        if units:
            self.entries.append((chain[-1] if chain else None, units))
        self.use(chain)

    def depth(self, chain: Chain) -> int:
        return len(list(takewhile(self.entries.__contains__, chain)))


@given(steps=steps)
def test_what_is_believed_is_what_a_naive_list_in_order_of_use_holds(steps: list[tuple[str, Chain, int]]) -> None:
    index, oracle = PrefixIndex(), Oracle()
    answering: list[Chain] = []
    for step, chain, units in steps:
        match step:
            case "begin":
                index.answered("a", chain, index.dispatched("a", chain, None, 0.0, CAPACITY))
                oracle.begin(chain)
                answering.append(chain)
            case "whole":
                index.answered("a", chain, index.dispatched("a", chain, None, 0.0, CAPACITY), units)
                oracle.begin(chain)
                oracle.end(chain, units)
            case "share":
                index.shared("a", chain, CAPACITY)
                oracle.use(chain)
            case "end" if answering:
                ended = answering.pop(chain[0] % len(answering))
                index.ended("a", ended, units)
                oracle.end(ended, units)
        for asked in [tuple(range(9)), (0, 1, 20, 21, 22), (0, 1, 20, 22, 23), (30, 31, 32, 33, 34, 35)]:
            assert depths(index, asked, 0.0).get("a", 0) == oracle.depth(asked)
        assert index.blocks("a") == len(oracle.entries)
        assert oracle.units <= CAPACITY
        index.check()


@given(answers=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**12)), max_size=40), room=st.integers(1, 12))
def test_whatever_is_answered_no_more_is_kept_than_there_is_room_for(answers: list[tuple[int, int]], room: int) -> None:
    table = Dispatches()
    for tail, units in answers:
        chain = [100 * tail + place for place in range(tail)]
        table.begun(0, chain, 1000, room)
        table.ended(0, chain, units, 1000, room)
        assert len(table) <= room
        table.check()
    table.forget(0)
    assert not table.masks


def held(index: PrefixIndex, chain: Sequence[int]) -> int:
    return depths(index, chain, 0.0).get("a", 0)


def ask(index: PrefixIndex, chain: Sequence[int], units: int) -> None:
    index.answered("a", chain, index.dispatched("a", chain, None, 0.0, 20))
    index.ended("a", chain, units)


def test_long_answers_push_out_what_was_used_longest_ago() -> None:
    index = PrefixIndex()
    ask(index, range(10), 0)
    ask(index, range(100, 105), 8)
    assert held(index, range(10)) == 7
    assert held(index, range(100, 105)) == 5


def test_an_answer_goes_before_its_prompt_does() -> None:
    index = PrefixIndex()
    ask(index, range(10), 8)
    ask(index, range(100, 110), 0)
    assert held(index, range(10)) == 10
    ask(index, range(200, 205), 0)
    assert held(index, range(10)) == 5


def test_a_next_turn_that_repeats_an_answer_is_not_charged_for_it_again() -> None:
    index = PrefixIndex()
    ask(index, range(100, 104), 0)
    for turn in range(1, 5):  # Each turn has two blocks of question and two of answer.
        ask(index, range(4 * turn - 2), 2)
    assert held(index, range(100, 104)) == 4


def test_each_conversation_behind_one_prompt_takes_an_answer_with_it() -> None:
    index = PrefixIndex()
    ask(index, range(100, 104), 0)
    for _ in range(3):
        ask(index, range(4), 2)
    for conversation in range(3):
        ask(index, [*range(4), *range(1000 * conversation, 1000 * conversation + 3)], 0)
    assert held(index, range(100, 104)) == 4


def test_thoughts_that_no_next_turn_repeats_go_on_taking_room() -> None:
    index = PrefixIndex()
    ask(index, range(100, 104), 0)
    ask(index, range(4), 10)
    ask(index, range(8), 0)
    assert held(index, range(100, 104)) == 2


def test_what_is_being_answered_is_not_let_go() -> None:
    index = PrefixIndex()
    index.answered("a", range(10), index.dispatched("a", range(10), None, 0.0, 20))
    for number in range(1, 3):
        ask(index, range(100 * number, 100 * number + 7), 0)
    assert held(index, range(10)) == 10
    index.ended("a", range(10), 0)
    for number in range(3, 6):
        ask(index, range(100 * number, 100 * number + 7), 0)
    assert held(index, range(10)) == 0


def test_answers_are_nothing_that_other_routers_are_told() -> None:
    index = PrefixIndex()
    ask(index, range(3), 5)
    ask(index, [], 2)
    assert index.latest("a", 10) == [(0, 1), (1, 1), (2, 1)]


def served(
    picker: Picker, pod: Target, chain: list[int], outcome: Outcome, tokens: int | None, *, streamed: bool
) -> None:
    decision = picker.pick(Prompt("m", chain, 128 * len(chain), streamed=streamed), [pod], 0.0)
    if streamed:
        picker.first_token(decision, 0.1)
    picker.finished(decision, 0.2, outcome, None, tokens)


def expected_after(tokens: int | None, *, outcome: Outcome = Outcome.ANSWERED, streamed: bool = True) -> int:
    """Tokens of a prompt of ten blocks that are expected in a cache of 20, after another one of five was answered."""
    picker = make("prefix", PrefixIndex(), random.Random(0))
    pod = Target("a")
    pod.load.total_blocks, pod.load.block_size = 20, 128
    served(picker, pod, list(range(10)), Outcome.ANSWERED, 1, streamed=True)
    served(picker, pod, list(range(100, 105)), outcome, tokens, streamed=streamed)
    return picker.pick(Prompt("m", list(range(10)), 1300), [pod], 1.0).predicted_cached_tokens


def test_output_tokens_count_in_what_an_endpoint_is_believed_to_hold() -> None:
    assert expected_after(5) == 1280
    assert expected_after(8 * 128) == 7 * 128
    assert expected_after(8 * 128, streamed=False) == 7 * 128


def test_what_is_not_told_or_not_believed_takes_no_room() -> None:
    assert expected_after(None) == 1280
    assert expected_after(10**18) == 1280
    assert expected_after(None, outcome=Outcome.LOST) == 1280
