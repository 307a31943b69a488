"""Every policy counts load at the decision and gives all of it back, whatever becomes of the requests."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.admission.ceiling import Report
from headwater_router.outcome import Outcome
from headwater_router.picker import POLICIES, make
from headwater_router.picker.base import Decision, Picker, Prompt, Target

PROMPTS = [
    Prompt("m", [1, 2, 3], 400),
    Prompt("m", [1, 2, 4], 420, session="s"),
    Prompt("m", [], 10, streamed=False),
    Prompt("m", [5], 200, token_chain=[7, 8, 9], streamed=False, session="t"),
]

steps = st.lists(
    st.tuples(
        st.sampled_from(["pick", "pick", "first_token", "finish", "fail", "forget", "gauge"]), st.integers(0, 10**6)
    ),
    max_size=60,
)


def picker(policy: str) -> Picker:
    return make(policy, rng=random.Random(0))


@pytest.mark.parametrize("policy", POLICIES)
@given(steps=steps)
def test_load_returns_to_zero_and_picks_stay_within_the_targets(policy: str, steps: list[tuple[str, int]]) -> None:
    picker_ = picker(policy)
    targets = [Target(f"pod-{number}") for number in range(5)]
    open_: list[Decision] = []
    now = 0.0
    for step, number in steps:
        now += number % 7
        match step:
            case "pick":
                offered = random.Random(number).sample(targets, 1 + number % 5)
                decision = picker_.pick(PROMPTS[number % 4], offered, now)
                assert decision.target in offered
                assert 0 <= decision.predicted_cached_tokens < decision.prompt.tokens
                open_.append(decision)
            case "first_token" if open_:
                picker_.first_token(open_[number % len(open_)], now)
            case "finish" | "fail" if open_:
                picker_.finished(
                    open_.pop(number % len(open_)), now, Outcome.ANSWERED if step == "finish" else Outcome.FAILED
                )
            case "forget":
                picker_.forget(targets[number % 5].id)
            case "gauge":
                targets[number % 5].load.report(Report(waiting=number % 9))
        assert sum(target.load.in_flight for target in targets) == len(open_)
        assert all(target.load.prefill_tokens >= 0 for target in targets)
    for decision in open_:
        picker_.finished(decision, now, Outcome.FAILED)
    assert all(target.load.in_flight == target.load.prefill_tokens == 0 for target in targets)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_decision_counts_before_anything_is_answered(policy: str) -> None:
    target = Target("a")
    decision = picker(policy).pick(PROMPTS[0], [target], 0.0)
    assert (target.load.in_flight, target.load.prefill_tokens) == (1, decision.prompt.tokens)


@pytest.mark.parametrize("policy", POLICIES)
def test_finishing_twice_is_refused(policy: str) -> None:
    picker_ = picker(policy)
    decision = picker_.pick(PROMPTS[0], [Target("a")], 0.0)
    picker_.finished(decision, 1.0, Outcome.ANSWERED)
    with pytest.raises(ValueError, match="finished twice"):
        picker_.finished(decision, 1.0, Outcome.ANSWERED)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_burst_of_equal_prompts_spreads_evenly(policy: str) -> None:
    picker_ = picker(policy)
    targets = [Target(f"pod-{number}") for number in range(4)]
    for number in range(100):
        picker_.pick(Prompt("m", [number], 500, session=str(number)), targets, 0.0)
    counts = [target.load.in_flight for target in targets]
    if policy == "session":
        assert max(counts) <= 32  # 1.25 times the mean, rounded up.
    else:
        assert counts == [25, 25, 25, 25]
