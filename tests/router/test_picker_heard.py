"""What engines tell of the time of their tokens."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.backends.metrics import TokenTimes
from headwater_router.admission.ceiling import Report
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.heard import Heard
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.picker.targets import Targets

TOKENS = st.floats(allow_nan=False, allow_infinity=False)


def test_the_mean_time_of_a_token_says_how_many_steps_there_were() -> None:
    heard = Heard()
    assert heard.steps(TokenTimes(10.0, 1000), 1.0) == 0
    assert heard.steps(TokenTimes(12.0, 1100), 1.0) == pytest.approx(50)


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        pytest.param(None, 1.0, id="it tells nothing any more"),
        pytest.param(TokenTimes(0.5, 50), 1.0, id="it began anew"),
        pytest.param(TokenTimes(10.1, 1008), 1.0, id="there was next to nothing"),
        pytest.param(TokenTimes(10.0, 5000), 1.0, id="tokens took no time"),
        pytest.param(TokenTimes(1e300, 1100), 1.0, id="they took for ever"),
        pytest.param(TokenTimes(12.0, 1100), 0.01, id="the last look was just now"),
        pytest.param(TokenTimes(12.0, 1100), 60.0, id="it was long ago"),
    ],
)
def test_nothing_is_made_of_what_can_not_be(times: TokenTimes | None, seconds: float) -> None:
    heard = Heard()
    heard.steps(TokenTimes(10.0, 1000), 1.0)
    assert heard.steps(times, seconds) == 0


@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), max_size=20))
def test_steps_are_a_number_whatever_an_engine_tells(told: list[tuple[float, float, float]]) -> None:
    heard = Heard()
    for seconds, tokens, apart in told:
        assert 0 <= heard.steps(TokenTimes(seconds, tokens), apart) <= 1e6 + 1


def test_an_engine_whose_tokens_take_longer_is_known_to_be_slow_before_it_has_answered_again() -> None:
    """Both were alike; then the second tells of three times as long a time, while its answers go on."""
    picker, targets = PrefixPicker(PrefixIndex(), random.Random(1)), Targets([Target("a"), Target("b")])
    times, now = [TokenTimes(0.0, 0.0), TokenTimes(0.0, 0.0)], 0.0

    def rest(slow: float) -> None:
        """A second, in which three answers run at each."""
        nonlocal now
        now += 1.0
        for place, each in enumerate((0.02, 0.02 * slow)):
            seconds, tokens = times[place]
            times[place] = TokenTimes(seconds + 3.0, tokens + 3.0 / each)
            targets.all[place].load.report(Report(3, 0, token_times=times[place]))

    for number in range(120):
        prompt = Prompt("m", [number], 400, streamed=False)
        decision = picker.pick(prompt, targets, now)
        rest(1.0)
        picker.finished(decision, now, Outcome.ANSWERED, output_tokens=50)
    long = [picker.pick(Prompt("m", [1000 + number], 400, streamed=False), targets, now) for number in range(8)]
    assert {each.target.id for each in long} == {"a", "b"}
    for number in range(40):
        rest(3.0)
        decision = picker.pick(Prompt("m", [2000 + number], 400), targets, now)
        picker.finished(decision, now, Outcome.CLIENT_LEFT)
    speeds = {name: picker.speed(name) for name in ("a", "b")}
    assert speeds["a"] is not None
    assert speeds["b"] is not None
    assert speeds["b"].factor > 1.5 * speeds["a"].factor
