"""The policies to compare with: turns, least load, sessions."""

import random
from collections import Counter

import pytest

from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Label, Prompt, Target
from headwater_router.picker.policies import Policies


def targets(count: int) -> list[Target]:
    return [Target(f"pod-{number}") for number in range(count)]


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="found 'fastest', allowed are prefix, round_robin, least_loaded, session"):
        make("fastest")


def test_an_endpoint_that_goes_is_forgotten_before_any_picker_was_asked_for_it() -> None:
    index = PrefixIndex()
    policies = Policies("round_robin", index)
    index.shared("pod-0", [1, 2], 10)
    policies.forget("pod-0")
    assert index.size().endpoints == 0


def test_policies_that_do_not_look_at_prefixes_say_so() -> None:
    decision = make("round_robin").pick(Prompt("m", [1], 200), targets(1), 0.0)
    assert (decision.label, decision.predicted_cached_tokens, decision.predicted_ttft) == (Label.FALLBACK, 0, None)


def test_round_robin_takes_turns_for_each_model_by_itself() -> None:
    picker = make("round_robin", rng=random.Random(0))
    pods = targets(3)
    picks = [(model, picker.pick(Prompt(model, [], 10), pods, 0.0).target.id) for _ in range(6) for model in ("a", "b")]
    assert Counter(picks) == {(model, pod.id): 2 for model in ("a", "b") for pod in pods}


def test_least_loaded_breaks_ties_at_random() -> None:
    pods = targets(4)
    picker = make("least_loaded", rng=random.Random(0))
    chosen = Counter()
    for _ in range(400):
        decision = picker.pick(Prompt("m", [], 10), pods, 0.0)
        chosen[decision.target.id] += 1
        picker.finished(decision, 0.0, Outcome.ANSWERED)
    assert set(chosen) == {pod.id for pod in pods}
    assert max(chosen.values()) < 150


def session_of(pods: list[Target], session: str) -> str:
    picker = make("session", rng=random.Random(0))
    decision = picker.pick(Prompt("m", [], 10, session=session), pods, 0.0)
    picker.finished(decision, 0.0, Outcome.ANSWERED)
    return decision.target.id


def test_a_session_stays_on_its_pod_in_every_router() -> None:
    pods = targets(5)
    for session in map(str, range(50)):
        assert session_of(pods, session) == session_of(list(reversed(targets(5))), session)


def test_only_the_sessions_of_a_pod_that_leaves_move() -> None:
    pods = targets(5)
    before = {session: session_of(pods, session) for session in map(str, range(200))}
    after = {session: session_of(pods[:-1], session) for session in before}
    assert {before[session] for session in before if before[session] != after[session]} == {"pod-4"}


def test_a_busy_session_overflows_to_the_same_second_choice() -> None:
    pods = targets(4)
    picker = make("session", rng=random.Random(0))
    chosen = Counter(picker.pick(Prompt("m", [], 10, session="hot"), pods, 0.0).target.id for _ in range(40))
    assert max(chosen.values()) <= 13


def test_without_a_session_the_least_loaded_pod_is_chosen() -> None:
    pods = targets(3)
    pods[0].load.in_flight = pods[2].load.in_flight = 1
    assert make("session").pick(Prompt("m", [], 10), pods, 0.0).target is pods[1]
