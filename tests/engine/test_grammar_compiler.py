"""What the compiler of grammars does first, leaves undone, and keeps."""

import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.grammar.compiler import THREADS, Compiler, Grammar
from headwater_engine.grammar.priority import PATIENT
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS, byte_level_tokenizer

ROWS = 320
TOKENIZER = byte_level_tokenizer(ROWS).backend_tokenizer.to_str()


class Held:
    """Stands in for a compiler's work: it is not done before it may be."""

    def __init__(self, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.niceness: set[int] = set()
        """Of the threads that do it."""
        self.go = threading.Event()
        self._make = compiler._compile
        monkeypatch.setattr(compiler, "_compile", self._held)

    def _held(self, constraint: Constraint) -> Grammar:
        self.niceness.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        self.begun.append(constraint.text)
        assert self.go.wait(300)
        return self._make(constraint)

    def until_begun(self, count: int) -> None:
        until = time.monotonic() + 300
        while len(self.begun) < count:
            assert time.monotonic() < until
            time.sleep(0.001)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Compiler, Held]]:
    """A compiler whose threads all have something to do."""
    compiler = Compiler(TOKENIZER, (BYTE_LEVEL_EOS,), ROWS)
    held = Held(compiler, monkeypatch)
    for number in range(THREADS):
        compiler.compile(Constraint(Kind.REGEX, f"busy{number}"))
    held.until_begun(THREADS)
    yield compiler, held
    held.go.set()
    compiler.close()


def test_a_form_that_nobody_waits_for_any_more_is_not_made(busy: tuple[Compiler, Held]) -> None:
    compiler, held = busy
    one, two, other = (Constraint(Kind.REGEX, text) for text in ("one", "two", "other"))
    futures = [compiler.compile(each) for each in (one, two, two, other)]
    for each in (one, two):
        compiler.forget(each)
    assert [future.cancelled() for future in futures] == [True, False, False, False], "one still waits for `two`"
    held.go.set()
    for future in futures[1:]:
        future.result(300)
    assert set(held.begun[THREADS:]) == {"two", "other"}
    assert compiler.compile(one).result(300), "who asks for it later gets it"


def test_a_short_form_does_not_wait_behind_long_ones(busy: tuple[Compiler, Held]) -> None:
    compiler, held = busy
    long = [Constraint(Kind.REGEX, f"{number}" + "x" * 60_000) for number in range(20)]
    futures = [compiler.compile(each) for each in long] + [compiler.compile(Constraint(Kind.REGEX, "short"))]
    held.go.set()
    for future in futures:
        future.result(300)
    assert "short" in held.begun[THREADS : 2 * THREADS]


def test_whoever_makes_grammars_stands_back_for_the_steps_of_all_others(busy: tuple[Compiler, Held]) -> None:
    _, held = busy
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert held.niceness == {max(PATIENT, own)}


def test_grammars_are_kept_by_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_engine.grammar.compiler._KEPT_BYTES", 16 << 20)
    compiler = Compiler(TOKENIZER, (BYTE_LEVEL_EOS,), ROWS)
    forms = [Constraint(Kind.CHOICE, json.dumps([f"{number}" + "x" * 2000])) for number in range(4)]
    made = [compiler.compile(each).result(300) for each in forms[:2]]
    assert compiler.compile(forms[0]).result(300) is made[0]
    made[1].cost.add(0.2)  # a mask that built states, by its time of 25 MB; all else is of 2 MB or so
    compiler.compile(forms[2]).result(300)
    compiler.compile(forms[3]).result(300)
    assert compiler.compile(forms[1]).result(300) is not made[1], "it was asked for least lately"
    compiler.close()
