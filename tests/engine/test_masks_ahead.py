"""Who makes masks: the engine's loop, for which everybody waits, or a thread. Clocks are counted, not read."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.grammar.ahead import MaskMaker
from headwater_engine.grammar.compiler import Compiler
from headwater_engine.grammar.matcher import Cost, GrammarError, Matcher
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS, byte_level_tokenizer

PROVEN, PROBATION = 16, 256
QUICK, SLOW = 0.0001, 0.05
"""Seconds of a mask."""


class Counted:
    """Stands in for llguidance's matcher, and for the clock: what it does takes as long as it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes = QUICK
        self.makers: list[int] = []
        """The thread of each mask."""

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        self.now += self.takes
        self.makers.append(threading.get_ident())

    def try_consume_tokens(self, tokens: list[int]) -> int:
        self.now += self.takes
        return len(tokens)

    def compute_ff_tokens(self) -> list[int]:
        return []

    def consume_token(self, token: int) -> bool:
        self.now += self.takes
        return True

    def is_error(self) -> bool:
        return False


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr("headwater_engine.grammar.matcher.time", SimpleNamespace(thread_time=lambda: counted.now))
    return counted


@pytest.fixture
def maker() -> Iterator[MaskMaker]:
    maker = MaskMaker()
    yield maker
    maker.close()


def made_by_loop(maker: MaskMaker, counted: Counted, cost: Cost, masks: list[float]) -> list[bool]:
    """For each of an answer's masks, which take so many seconds, whether the loop made it."""
    matcher = Matcher(counted, cost, 1, 32)  # type: ignore[arg-type]
    for seconds in masks:
        counted.takes = seconds
        maker.make_now([matcher])
        matcher.wait(300)
        counted.takes = 0.0
        matcher.advance(0)
    made, counted.makers = [each == threading.get_ident() for each in counted.makers], []
    return made


def test_the_loop_makes_masks_of_grammars_that_have_shown_to_be_quick(maker: MaskMaker, counted: Counted) -> None:
    made = made_by_loop(maker, counted, Cost(), [QUICK] * (PROVEN + 100))
    assert made == [False] * PROVEN + [True] * 100


def test_a_grammar_that_turned_slow_takes_the_loop_one_mask_and_never_another(
    maker: MaskMaker, counted: Counted
) -> None:
    cost = Cost()
    quick = [QUICK] * (PROVEN + PROBATION + 10)
    made = made_by_loop(maker, counted, cost, [*quick[:PROVEN], SLOW, *quick])
    assert made == [False] * PROVEN + [True] + [False] * len(quick)
    assert cost.quick, "tokens are looked at again"
    assert not any(made_by_loop(maker, counted, cost, [QUICK] * 10)), "of another answer of this form neither"


def test_one_that_was_slow_at_its_beginning_may_show_that_it_is_not(maker: MaskMaker, counted: Counted) -> None:
    """The first mask is the dearest, as a rule."""
    made = made_by_loop(maker, counted, Cost(), [SLOW] + [QUICK] * (PROBATION + 10))
    assert made == [False] * (1 + PROBATION) + [True] * 10


def test_the_loop_makes_no_mask_of_a_long_text(maker: MaskMaker, counted: Counted) -> None:
    assert not any(made_by_loop(maker, counted, Cost(long=True), [QUICK] * 100))


def test_a_text_is_long_from_4_kib_on() -> None:
    compiler = Compiler(byte_level_tokenizer(320).backend_tokenizer.to_str(), (BYTE_LEVEL_EOS,), 320)
    forms = (Constraint(Kind.REGEX, "a" * length) for length in (4096, 4097))
    assert [compiler.compile(each).result(300).cost.long for each in forms] == [False, True]
    compiler.close()


def test_an_answer_whose_tokens_take_long_to_look_at_gets_masks_instead(counted: Counted) -> None:
    """Each of them less than what makes a grammar slow. Looking is the loop's, and an answer has 50 ms of it."""
    matcher = Matcher(counted, Cost(), 1, 32)  # type: ignore[arg-type]
    matcher.advance(0)
    counted.takes = 0.004
    looked = 0
    while not matcher.doubted:
        assert matcher.allows(0)
        matcher.advance(0)
        looked += 1
    assert looked == 15


def test_an_answer_is_followed_on_a_machine_that_is_ten_times_as_slow_and_not_on_a_hundred(counted: Counted) -> None:
    """15 us a token are usual. A loaded machine must not make a refusal of what is right."""
    slow, far_too_slow = (Matcher(counted, Cost(), 1, 32) for _ in range(2))  # type: ignore[arg-type]
    counted.takes = 0.00015
    for _ in range(2000):
        slow.forced()
        slow.advance(0)
    counted.takes = 0.0015
    with pytest.raises(GrammarError, match="too long to follow"):
        for _ in range(2000):
            far_too_slow.advance(0)
