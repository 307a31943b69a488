"""Requests a minute: never more than the rate and one bucket, and never fewer."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.admission.limits import Bucket, duration

LIMITS = st.one_of(st.integers(1, 100), st.sampled_from([600, 7919, 1_000_000]))
PAUSES = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 200)), max_size=200)


@given(LIMITS, PAUSES, st.floats(0, 1e7))
def test_what_is_let_through_is_the_rate_and_one_bucket(limit: int, pauses: list[float], start: float) -> None:
    """Held to a bucket that is filled drop by drop."""
    bucket, now, tokens = Bucket(), start, float(limit)
    for pause in pauses:
        now += pause
        tokens = min(limit, tokens + pause * limit / 60)
        taken = bucket.take(limit, now)
        # Where less than a hundredth of a request decides, either is right: both are sums of floats.
        if not math.isclose(tokens, 1, abs_tol=0.01 + limit * 2e-6):
            assert taken == (tokens >= 1)
        tokens -= taken


@given(LIMITS, st.integers(0, 150), st.floats(0, 1e7))
def test_the_level_says_what_will_be_let_through(limit: int, asked: int, now: float) -> None:
    bucket = Bucket()
    for _ in range(asked):
        bucket.take(limit, now)
    level = bucket.level(limit, now)
    assert level.limit == limit
    assert level.remaining == max(0, limit - asked)
    if level.remaining:
        assert level.next_in == 0
        assert Bucket(bucket.full_at).take(limit, now)
    else:
        assert not Bucket(bucket.full_at).take(limit, now)
        assert Bucket(bucket.full_at).take(limit, now + level.next_in)
    assert bucket.level(limit, now + level.full_in).remaining == limit


def test_a_limit_that_is_lowered_leaves_the_same_share_of_the_bucket() -> None:
    bucket = Bucket()
    for _ in range(30):
        bucket.take(60, 100.0)
    assert bucket.level(60, 100.0).remaining == 30
    assert bucket.level(10, 100.0).remaining == 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0001, "1ms"), (0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s"),
     (86.4, "1m26.4s")],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e5))
def test_a_duration_is_never_too_short(seconds: float) -> None:
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?|(\d+)ms", duration(seconds))
    assert found
    minutes, rest, milliseconds = (float(each or 0) for each in found.groups())
    assert seconds - 1e-6 <= 60 * minutes + rest + milliseconds / 1000 <= seconds + 0.00101
