"""An endpoint's speed is learned from few answers, and not from accidents."""

import random

import pytest

from headwater_router.picker.speed import Speed


def taught(seconds_per_token: float, seconds_per_answer: float, samples: int = 100) -> Speed:
    rng = random.Random(1)
    speed = Speed()
    for number in range(samples):
        tokens, answers = rng.randrange(1, 3000), rng.randrange(1, 20)
        speed.learn(tokens, answers, seconds_per_token * tokens + seconds_per_answer * answers, float(number))
    return speed


@pytest.mark.parametrize("rate", [100.0, 4000.0, 20_000.0])
def test_prompt_tokens_and_answers_are_told_apart(rate: float) -> None:
    speed = taught(1 / rate, 0.02)
    assert 1 / speed.seconds_per_token == pytest.approx(rate, rel=0.3)
    assert speed.seconds_per_answer == pytest.approx(0.02, rel=0.3)


def test_one_stall_changes_little() -> None:
    speed = taught(1 / 4000, 0.01)
    speed.learn(1000, 1, 300.0, 101.0)
    assert speed.seconds_per_token < 2.5 / 4000


def test_an_endpoint_that_became_slow_is_believed_after_a_few_answers() -> None:
    speed = taught(1 / 4000, 0.01)
    for number in range(15):
        speed.learn(1000, 1, 10.0, 101.0 + number)
    assert speed.seconds_per_token > 1 / 400


def test_no_sequence_of_samples_makes_a_speed_that_is_not_positive() -> None:
    rng = random.Random(2)
    speed = Speed()
    for number in range(2000):
        speed.learn(rng.randrange(0, 50_000), rng.randrange(1, 300), rng.choice([0.0, 1e-6, 0.1, 100.0]), float(number))
        assert speed.seconds_per_token > 0
        assert speed.seconds_per_answer >= 0


def test_a_first_answer_that_came_at_once_is_not_believed_at_once() -> None:
    speed = Speed()
    speed.learn(8000, 1, 0.0, 0.0)
    assert speed.seconds_per_token > 1 / 40_000


def test_an_endpoint_that_became_quick_is_believed_in_time() -> None:
    speed = taught(1 / 400, 0.01)
    for number in range(80):
        speed.learn(1000, 1, 0.1, 101.0 + number)
    assert 1000 * speed.seconds_per_token + speed.seconds_per_answer < 0.2


def test_answers_without_end_that_come_at_once_make_no_prefix_worthless_for_long() -> None:
    speed = Speed()
    for number in range(1000):
        speed.learn(4000, 1, 0.0, float(number))
    assert speed.seconds_per_token >= 1e-6
    for number in range(30):
        speed.learn(4000, 1, 1.0, 1000.0 + number)
    assert speed.seconds_per_token == pytest.approx(1 / 4000, rel=0.5)


def test_equal_prompts_in_equal_steps_leave_the_tokens_a_part_of_the_time() -> None:
    """Steps of 50 ms whatever is in them: by least squares, tokens cost nothing or less."""
    rng = random.Random(4)
    speed = Speed()
    for number in range(500):
        answers = rng.randrange(1, 12)
        speed.learn(1000 + rng.randrange(-20, 20), answers, 0.05 * answers, float(number))
        assert 1 / speed.seconds_per_token < 1e6
    assert 1000 * speed.seconds_per_token > 0.01
    assert 1000 * speed.seconds_per_token + 6 * speed.seconds_per_answer == pytest.approx(0.3, rel=0.3)
