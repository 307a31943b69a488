"""Among many endpoints a decision costs about what it costs among few, and is about as good as if it looked at all."""

import random
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.outcome import Outcome
from headwater_router.picker import POLICIES, make
from headwater_router.picker import targets as targets_module
from headwater_router.picker.base import Decision, Prompt, Target
from headwater_router.picker.targets import Targets
from tests.router.simulation import Fleet, Request, picker_for, words


def many(count: int = 64) -> Targets:
    return Targets(Target(f"pod-{number}") for number in range(count))


def conversation(number: int, turn: int = 6) -> Prompt:
    return Prompt(
        "m", [number % 10, *range(1000 * (number + 1), 1000 * (number + 1) + turn)], 1000, session=str(number)
    )


# Cost


def work_of(call: Callable[[], Decision]) -> int:
    """Bytecodes that it executes: the same on every machine, however busy it is."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def work_of_a_decision(policy: str, endpoints: int) -> float:
    picker, targets, open_ = make(policy, rng=random.Random(0)), many(endpoints), []
    for number in range(6 * endpoints):
        open_.append(picker.pick(conversation(number % (4 * endpoints)), targets, number * 0.1 / endpoints))
        if len(open_) > 2 * endpoints:
            ended = open_.pop(0)
            picker.first_token(ended, number * 0.1 / endpoints)
            picker.finished(ended, number * 0.1 / endpoints, Outcome.ANSWERED)
    # Twice an eighth: what is counted once for so many decisions is in it.
    picks = range(max(endpoints // 4, 8))
    return sum(work_of(lambda n=n: picker.pick(conversation(n), targets, 1.0)) for n in picks) / len(picks)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_decision_among_512_costs_little_more_than_one_among_8(policy: str) -> None:
    few = work_of_a_decision(policy, 8)
    assert work_of_a_decision(policy, 64) <= 1.6 * few
    assert work_of_a_decision(policy, 512) <= 1.6 * few


# Quality


def conversations(fleet: Fleet, seed: int) -> None:
    rng = random.Random(seed)
    systems = [words(rng, 800) for _ in range(6)]

    def turn(history: list[int], left: int) -> Request:
        def go_on(now: float) -> None:
            if left > 1:
                fleet.send(now + rng.uniform(0.1, 2), turn(history + words(rng, 200), left - 1))

        return Request(history, rng.randrange(20, 200), go_on)

    for _ in range(160):
        fleet.send(rng.uniform(0, 4), turn(rng.choice(systems) + words(rng, 300), 5))


def unlike(fleet: Fleet, seed: int) -> None:
    """Three quarters of what the engines can compute."""
    rng = random.Random(seed)
    at = 0.0
    for _ in range(1200):
        at += rng.expovariate(360)
        fleet.send(at, Request(words(rng, int(min(8000, 400 * rng.lognormvariate(0, 1)))), rng.randrange(20, 100)))


def hot(fleet: Fleet, seed: int) -> None:
    rng = random.Random(seed)
    system = words(rng, 3000)
    at = 0.0
    for _ in range(800):
        at += rng.expovariate(300)
        fleet.send(at, Request(system + words(rng, 200), rng.randrange(20, 100)))


def ttft(policy: str, traffic: Callable[[Fleet, int], None]) -> float:
    seconds = 0.0
    for seed in (2, 3):
        fleet = Fleet(picker_for(policy, seed), engines=64)
        traffic(fleet, seed)
        fleet.run()
        seconds += fleet.ttft()
    return seconds


@pytest.mark.parametrize(
    ("policy", "traffic"),
    [("prefix", conversations), ("prefix", unlike), ("prefix", hot), ("least_loaded", unlike)],
)
def test_a_few_of_64_compared_answer_about_as_soon_as_all_compared(
    policy: str, traffic: Callable[[Fleet, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ttft(policy, traffic)
    monkeypatch.setattr(targets_module, "COMPARED", 64)
    assert few <= 1.08 * ttft(policy, traffic)


def test_a_conversation_returns_to_its_holder_among_many() -> None:
    picker, pods = make("prefix", rng=random.Random(0)), many()
    homes = {}
    for turn in range(1, 6):
        for number in range(100):
            now = 200.0 * turn + number
            decision = picker.pick(conversation(number, 3 * turn), pods, now)
            assert homes.setdefault(number, decision.target) is decision.target
            picker.first_token(decision, now + 0.1)
            picker.finished(decision, now + 0.1, Outcome.ANSWERED)
    assert len(set(homes.values())) > 4


@pytest.mark.parametrize("policy", ["prefix", "least_loaded"])
def test_an_endpoint_that_became_idle_gets_the_next_request(policy: str) -> None:
    picker, pods = make(policy, rng=random.Random(0)), many()
    decisions = [picker.pick(Prompt("m", [number], 400), pods, 0.0) for number in range(640)]
    idle = decisions[77].target
    for decision in decisions:
        if decision.target is idle:
            picker.finished(decision, 0.0, Outcome.CLIENT_LEFT)
    assert picker.pick(Prompt("m", [9999], 400), pods, 0.0).target is idle


@pytest.mark.parametrize("policy", ["prefix", "least_loaded"])
def test_an_endpoint_that_nobody_told_of_is_found_by_chance(policy: str) -> None:
    picker, pods = make(policy, rng=random.Random(0)), many()
    for pod in pods.all[1:]:
        pod.load.penalty = 50
    for number in range(64):
        picker.finished(picker.pick(Prompt("m", [number], 400), pods, 0.0), 0.0, Outcome.CLIENT_LEFT)
    # Once found, it is where something has ended, so it is found again.
    assert picker.pick(Prompt("m", [9999], 400), pods, 0.0).target is pods.all[0]


@pytest.mark.parametrize("policy", ["prefix", "least_loaded"])
def test_a_burst_spreads_over_many(policy: str) -> None:
    picker, pods = make(policy, rng=random.Random(0)), many()
    for number in range(640):
        picker.pick(Prompt("m", [number], 400), pods, 0.0)
    counts = [pod.load.in_flight for pod in pods.all]
    assert 8 <= min(counts) <= max(counts) <= 12


def test_sessions_keep_their_pods_but_those_of_one_that_leaves() -> None:
    def homes(pods: Targets) -> dict[int, str]:
        picker, found = make("session", rng=random.Random(0)), {}
        for number in range(2000):
            decision = picker.pick(conversation(number), pods, 0.0)
            found[number] = decision.target.id
            picker.finished(decision, 0.0, Outcome.ANSWERED)
        return found

    before, after = homes(many(64)), homes(many(63))
    assert {before[each] for each in before if before[each] != after[each]} == {"pod-63"}
    assert max(Counter(before.values()).values()) < 2 * 2000 / 64


# Who may be chosen


@pytest.mark.parametrize("policy", POLICIES)
@given(
    endpoints=st.integers(1, 24),
    steps=st.lists(st.tuples(st.integers(0, 30), st.sets(st.integers(0, 24)), st.booleans()), max_size=30),
)
def test_who_is_excluded_is_never_chosen(policy: str, endpoints: int, steps: list[tuple[int, set[int], bool]]) -> None:
    picker, pods = make(policy, rng=random.Random(0)), many(endpoints)
    for now, (number, without, answered) in enumerate(steps):
        excluded = {f"pod-{each}" for each in without}
        if excluded >= {pod.id for pod in pods.all}:
            with pytest.raises(ValueError, match="excluded"):
                picker.pick(conversation(number), pods, float(now), excluded)
            continue
        decision = picker.pick(conversation(number), pods, float(now), excluded)
        assert decision.target.id not in excluded
        assert decision.target.id in [each.target_id for each in decision.candidates()]
        assert not excluded & {each.target_id for each in decision.candidates()}
        if answered:
            picker.first_token(decision, float(now))
            picker.finished(decision, float(now), Outcome.ANSWERED)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_any_target_there_is_nothing_to_pick(policy: str) -> None:
    with pytest.raises(ValueError, match="no target"):
        make(policy).pick(conversation(0), [], 0.0)


def test_a_decision_tells_whom_it_compared_the_best_first() -> None:
    picker, pods = make("prefix", rng=random.Random(0)), many(3)
    first = picker.pick(conversation(1), pods, 0.0)
    assert [each.predicted_ttft for each in first.candidates()] == [None] * 3
    picker.first_token(first, 0.3)
    picker.finished(first, 0.3, Outcome.ANSWERED)
    second = picker.pick(conversation(1), pods, 1.0)
    best, *others = second.candidates()
    assert (best.target_id, best.predicted_ttft, best.cached_tokens) == (
        first.target.id,
        second.predicted_ttft,
        second.predicted_cached_tokens,
    )
    assert len(others) == 2
    assert all(each.predicted_ttft > best.predicted_ttft and each.cached_tokens == 0 for each in others)


def test_models_without_end_leave_no_more_than_so_many_turns() -> None:
    picker, pods = make("round_robin", rng=random.Random(0)), many(2)
    for number in range(3000):
        picker.pick(Prompt(f"model-{number}" * 100, [], 10), pods, 0.0)
    assert len(picker._turns) == 1024
