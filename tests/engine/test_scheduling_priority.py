"""Who goes first: urgent ones, but none for ever before the others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine.core.messages import Output
from headwater_engine.core.request import MOST_LEVELS, STEPS_A_LEVEL, Request
from tests.engine.checked_worker import expected_output, generate
from tests.engine.test_scheduling import drain, make_engine

FEW = 200
"""Examples: each is hundreds of steps."""


@pytest.mark.parametrize("depth", [0, 1])
def test_who_is_less_urgent_is_not_starved_by_urgent_ones_without_end(depth: int) -> None:
    engine, _ = make_engine(max_num_seqs=1, depth=depth)
    engine.add(generate("patient", [1], priority=2**31 - 1))
    steps, most = 0, 2 * MOST_LEVELS * STEPS_A_LEVEL
    outputs: list[Output] = []
    while not any(output.id == "patient" for output in outputs):
        # As many as can be served, each as urgent as can be.
        steps += 1
        engine.add(generate(str(steps), [2], priority=-(2**31), max_tokens=1))
        outputs = engine.step()
        assert steps < 3 * most
    assert steps > most // 2


@given(
    priorities=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=8),
    arrivals=st.lists(st.integers(0, 3 * MOST_LEVELS * STEPS_A_LEVEL), min_size=8, max_size=8),
)
def test_nobody_is_passed_by_who_comes_too_much_later(priorities: list[int], arrivals: list[int]) -> None:
    requests = [
        Request.of(generate(str(n), [1], priority=priority), n, 40, arrivals[n])
        for n, priority in enumerate(priorities)
    ]
    ordered = sorted(requests, key=lambda request: request.rank)
    came = {request.id: arrivals[request.order] for request in requests}
    for place, first in enumerate(ordered):
        for later in ordered[place + 1 :]:
            assert came[first.id] - came[later.id] <= 2 * MOST_LEVELS * STEPS_A_LEVEL
            if came[first.id] == came[later.id] and max(abs(first.priority), abs(later.priority)) <= MOST_LEVELS:
                assert (first.priority, first.order) < (later.priority, later.order)


@settings(max_examples=FEW, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.integers(-2, 2), st.integers(1, 12), st.integers(1, 10)), max_size=20
    ),
    seats=st.integers(1, 3),
    depth=st.sampled_from([0, 1]),
)
def test_whatever_the_priorities_all_answers_are_right(
    arrivals: list[tuple[int, int, int, int]], seats: int, depth: int
) -> None:
    engine, _ = make_engine(blocks=12, max_num_seqs=seats, depth=depth)
    messages, answers = [], {}
    for number, (steps, priority, length, tokens) in enumerate(arrivals):
        message = generate(str(number), [number % 3 + 1] * length, priority=priority, max_tokens=tokens)
        messages.append(message)
        engine.add(message)
        for _ in range(steps):
            for output in engine.step():
                answers.setdefault(output.id, []).extend(output.tokens)
            engine.scheduler.check()
    for request_id, tokens in drain(engine).items():
        answers.setdefault(request_id, []).extend(tokens)
    assert answers == {m.id: expected_output(m.prompt, m.params, 40) for m in messages}


@pytest.mark.parametrize("depth", [0, 1])
def test_an_urgent_request_takes_the_seat_of_the_least_urgent_one(depth: int) -> None:
    engine, _ = make_engine(blocks=64, max_num_seqs=2, depth=depth)
    messages = [
        generate(name, [n + 1] * 3, priority=priority, max_tokens=12, ignore_eos=True)
        for n, (name, priority) in enumerate((("usual", 0), ("patient", 5)))
    ]
    for message in messages:
        engine.add(message)
    answers: dict[str, list[int]] = {}
    for _ in range(4):
        for output in engine.step():
            answers.setdefault(output.id, []).extend(output.tokens)
    urgent = generate("urgent", [7] * 3, priority=-5, max_tokens=2, ignore_eos=True)
    engine.add(urgent)
    order = []
    while engine.has_work:
        for output in engine.step():
            answers.setdefault(output.id, []).extend(output.tokens)
            order += [output.id] if output.finish_reason else []
        engine.scheduler.check()
    assert order == ["urgent", "usual", "patient"]
    assert engine.scheduler.preemptions == 1
    assert answers == {m.id: expected_output(m.prompt, m.params, 40) for m in (*messages, urgent)}


def test_an_urgent_request_takes_the_blocks_of_less_urgent_ones() -> None:
    engine, _ = make_engine(blocks=10, max_num_seqs=4, max_batched_tokens=32)
    engine.add(generate("patient", [1] * 30, priority=5, max_tokens=9, ignore_eos=True))
    engine.step()
    engine.add(generate("urgent", [2] * 30, max_tokens=2, ignore_eos=True))
    assert [output.id for output in engine.step()] == ["urgent"]
    engine.scheduler.check()
    drain(engine)


def test_nobody_loses_a_seat_to_one_that_is_no_more_urgent() -> None:
    engine, _ = make_engine(blocks=64, max_num_seqs=1)
    for n in range(3):
        engine.add(generate(str(n), [n + 1], max_tokens=4, ignore_eos=True))
    drain(engine)
    assert engine.scheduler.preemptions == 0


class Counted(Request):
    """Counts how often it is looked at to find another one."""

    __slots__ = ()
    looks = 0

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return self is other

    __hash__ = None  # type: ignore[assignment]

    @property
    def rank(self) -> tuple[int, int]:
        Counted.looks += 1
        return super().rank


def test_aborting_all_that_wait_costs_each_the_same() -> None:
    engine, _ = make_engine()
    count = 2000
    for n in range(count):
        engine.scheduler.add(Counted.of(generate(str(n), [1], priority=n % 3), n, 40))
    Counted.looks = 0
    engine.abort([str(n) for n in reversed(range(count))])
    assert not engine.has_work
    assert Counted.looks <= 16 * count, "the logarithm of all that wait for each, not all of them"
