"""A step that fails: what it costs, who is blamed, and what stays."""

import math

import pytest

from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import FinishReason, Output
from tests.engine.checked_worker import POISON, SIZE, CheckedWorker, Place, expected_output, generate
from tests.engine.test_scheduling import drain, make_engine

PLACES = pytest.mark.parametrize(
    ("place", "depth"), [(place, depth) for place in Place for depth in (0, 1)], ids=lambda value: str(value)
)
MANY, LENGTH = 32, 10


def decoding(depth: int, poisoned: Place = Place.LAUNCH) -> tuple[Engine, CheckedWorker]:
    """Many requests that have got through their prompts."""
    engine, worker = make_engine(
        MANY * 10, max_num_seqs=MANY, max_batched_tokens=2 * MANY, depth=depth, poisoned=poisoned
    )
    for n in range(MANY):
        engine.add(generate(str(n), [n + 1] * LENGTH, max_tokens=25, ignore_eos=True))
    while not all(request.output for request in engine.scheduler.requests()):
        engine.step()
    return engine, worker


def test_one_poisoned_request_fails_alone() -> None:
    engine, _ = make_engine(blocks=32, max_batched_tokens=64)
    for n in range(3):
        engine.add(generate(str(n), [n + 1] * 5, ignore_eos=True))
    engine.add(generate("bad", [1, POISON]))
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
        engine.scheduler.check()
    failed = [output.id for output in outputs if output.error]
    assert failed == ["bad"]
    assert {output.id for output in outputs if output.finish_reason is FinishReason.LENGTH} == {"0", "1", "2"}


@PLACES
def test_a_failed_step_costs_that_step_and_no_more(place: Place, depth: int) -> None:
    engine, worker = decoding(depth)
    quiet, undisturbed = decoding(depth)
    drain(quiet)
    worker.fail_next = place
    drain(engine)
    # What was launched on top of it is lost, too.
    lost = 2 if place is Place.WAIT and depth == 1 else 1
    assert worker.computed - undisturbed.computed == lost * MANY
    assert engine.stats().prompt_tokens_computed == MANY * LENGTH
    assert engine.scheduler.preemptions == 0


@PLACES
def test_what_ended_before_a_failed_step_is_still_reused(place: Place, depth: int) -> None:
    engine, worker = make_engine(blocks=32, depth=depth)
    engine.add(generate("before", [1] * 13, max_tokens=1))
    drain(engine)
    engine.add(generate("hit", [2] * 3, max_tokens=3))
    worker.fail_next = place
    drain(engine)
    engine.add(generate("after", [1] * 13, max_tokens=1))
    while not (outputs := engine.step()):
        pass
    assert outputs[0].cached_tokens == 12


@PLACES
def test_blame_is_found_by_halving(place: Place, depth: int) -> None:
    engine, worker = decoding(depth, place)
    engine.add(generate("bad", [POISON]))
    engine.abort(["0"])  # who gives it room
    while worker.last_failed is None:
        engine.step()
    steps = worker.steps
    blamed: list[Output] = []
    while not blamed:
        blamed = [output for output in engine.step() if output.error]
        engine.scheduler.check()
    assert [output.id for output in blamed] == ["bad"]
    # Each half that fails is halved, each other one gets through.
    assert worker.steps - steps <= 2 * math.log2(MANY)
    drain(engine)
    assert engine.stats().prompt_tokens_computed == MANY * LENGTH


@PLACES
def test_several_poisoned_ones_are_all_found_and_nobody_else(place: Place, depth: int) -> None:
    engine, _ = make_engine(200, max_num_seqs=16, max_batched_tokens=200, depth=depth, poisoned=place)
    messages = [generate(str(n), [n % 3 + 1] * 7 + [POISON] * (n in (3, 4, 11)), ignore_eos=True) for n in range(16)]
    for message in messages:
        engine.add(message)
    answers: dict[str, list[int]] = {}
    failed = []
    while engine.has_work:
        for output in engine.step():
            answers.setdefault(output.id, []).extend(output.tokens)
            failed += [output.id] if output.error else []
        engine.scheduler.check()
    assert sorted(failed) == ["11", "3", "4"]
    for message in messages:
        expected = [] if message.id in failed else expected_output(message.prompt, message.params, 40)
        assert answers[message.id] == expected


def test_a_prefix_that_a_failed_step_was_to_compute_is_offered_to_nobody() -> None:
    engine, worker = make_engine(blocks=32, max_batched_tokens=64)
    for n in range(3):
        engine.add(generate(str(n), [1] * (4 * SIZE) + [n + 2], max_tokens=1))
    worker.fail_next = Place.WAIT
    assert engine.step() == []
    assert engine.scheduler.cache.cached == 0
    cached = [output.cached_tokens for _ in range(4) for output in engine.step()]
    assert sorted(cached) == [0, 16, 16], "the first one that is tried again computes it"


def test_who_left_while_its_step_was_under_way_leaves_nothing_behind_that_failed() -> None:
    engine, worker = make_engine(blocks=32, max_batched_tokens=64, depth=1)
    engine.add(generate("a", [1] * 17, max_tokens=4))
    engine.add(generate("b", [2] * 3, max_tokens=4))
    engine.step()
    engine.abort(["a"])
    engine.add(generate("c", [1] * 17, max_tokens=1))
    worker.fail_next = Place.WAIT
    outputs = [output for _ in range(6) for output in engine.step() if output.id == "c"]
    assert [output.cached_tokens for output in outputs] == [0]
