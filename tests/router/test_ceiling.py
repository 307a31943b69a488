"""When an engine has no room: by its gauges, by what it turned down, by its memory, and never for good."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.admission.ceiling import Ceiling, Report


def room(ceiling: Ceiling, most: int = 2000, kv_tokens: int = 0) -> int:
    """Requests that may be there."""
    return next((there for there in range(most) if not ceiling.has_room(there, kv_tokens)), most)


def test_an_engine_of_which_nothing_is_known_has_room() -> None:
    assert room(Ceiling()) == 2000


def test_places_that_are_told_are_kept_with_a_few_to_spare() -> None:
    ceiling = Ceiling()
    ceiling.reported(Report(running=3, waiting=0, most_running=64), 0)
    assert ceiling.places == 64
    assert room(ceiling) == 64 + 2 + 4


def test_places_are_seen_where_as_many_run_each_time_and_others_wait() -> None:
    ceiling = Ceiling()
    for waiting in (5, 90, 40):
        assert room(ceiling) == 2000
        ceiling.reported(Report(running=256, waiting=waiting, cache_usage=0.4), 0)
    assert room(ceiling) == 256 + 2 + 16
    ceiling.reported(Report(running=200, waiting=0, cache_usage=0.4), 0)
    assert room(ceiling) == 2000


@pytest.mark.parametrize("running", [[30, 42, 57, 64], [1, 1, 1, 1], [4, 4, 4, 4]])
def test_prompts_that_wait_to_be_computed_are_no_lack_of_places(running: list[int]) -> None:
    ceiling = Ceiling()
    for each in running:
        ceiling.reported(Report(running=each, waiting=20, cache_usage=0.5), 0)
    assert room(ceiling) == 2000


def test_what_was_turned_down_is_put_to_the_test_slowly() -> None:
    ceiling = Ceiling()
    for there in range(500, 127, -1):  # A burst of which all but 128 are refused.
        ceiling.turned_down(there)
    assert room(ceiling) == 128
    for _ in range(130):
        ceiling.answered(127)
    assert room(ceiling) == 129
    for _ in range(100):
        ceiling.answered(20)
    assert room(ceiling) == 129, "what is answered with room left shows nothing"


def test_what_is_refused_though_nothing_is_there_says_nothing_of_room() -> None:
    ceiling = Ceiling()
    ceiling.turned_down(0)
    assert room(ceiling) == 2000


def test_full_memory_is_no_room_until_something_ends() -> None:
    ceiling = Ceiling(kv_capacity=100_000)
    ceiling.reported(Report(running=50, waiting=3, cache_usage=0.98), kv_tokens=60_000)
    assert not ceiling.has_room(53, 60_000)
    assert ceiling.has_room(53, 56_000), "four per cent of it have ended"
    assert not ceiling.has_room(53, 58_000)
    ceiling.reported(Report(running=40, waiting=0, cache_usage=0.7), kv_tokens=40_000)
    assert ceiling.has_room(53, 40_000)


def test_memory_that_only_looks_full_since_prefixes_are_kept_there_stops_nobody() -> None:
    """Some engines count what they would let go at once: nobody waits there."""
    ceiling = Ceiling(kv_capacity=100_000)
    there = 4
    ceiling.reported(Report(running=there, waiting=1, cache_usage=0.99), 0)
    for _ in range(20):
        while ceiling.has_room(there, 0):
            there += 1
        ceiling.reported(Report(running=there, waiting=0, cache_usage=0.99), 0)
    assert there >= 20


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("turned"), st.integers(0, 500)),
            st.tuples(st.just("answered"), st.integers(0, 500)),
            st.tuples(
                st.just("report"),
                st.builds(
                    Report,
                    st.none() | st.integers(0, 300),
                    st.none() | st.integers(0, 300),
                    st.none() | st.floats(0, 2),
                    st.none() | st.integers(0, 300),
                ),
            ),
        ),
        max_size=60,
    ),
    st.integers(0, 10**6),
)
def test_one_request_always_has_room_where_there_is_none_yet(steps: list[tuple[str, object]], kv: int) -> None:
    ceiling = Ceiling(kv_capacity=50_000)
    for step, value in steps:
        match step, value:
            case "turned", int():
                ceiling.turned_down(value)
            case "answered", int():
                ceiling.answered(value)
            case _, Report():
                ceiling.reported(value, kv)
    assert ceiling.has_room(0, kv)
    fits = [ceiling.has_room(there, kv) for there in range(600)]
    assert fits == sorted(fits, reverse=True), "fewer requests never have less room"
