"""An endpoint that fails far more than its peers is taken out; one client's bad requests take out nobody."""

from hypothesis import given
from hypothesis import strategies as st

from headwater_router.endpoints.breaker import Breaker, BreakerState
from headwater_router.endpoints.ejection import reason_to_eject
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec


def breaker() -> Breaker:
    return Breaker(failures=5, window=60.0, open_for=30.0)


def endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(EndpointSpec(f"http://10.0.0.{n}:8000", f"e{n}"), breaker()) for n in range(count)]


def feed(endpoint: Endpoint, answered: int, failed: int, now: float = 1.0) -> None:
    for _ in range(answered):
        endpoint.breaker.answered(now)
    for _ in range(failed):
        endpoint.breaker.failed(now)


def test_an_ejected_endpoint_waits_for_a_probe_and_not_for_a_request() -> None:
    each = breaker()
    seconds = each.eject(100.0)
    assert not each.closed
    each.probed(100.0 + seconds - 0.1)
    assert each.state(100.0 + seconds - 0.1) is BreakerState.OPEN
    assert each.state(100.0 + seconds) is BreakerState.HALF_OPEN
    assert not each.closed, "its time is over, but nobody has tried it"
    each.probed(100.0 + seconds)
    assert each.closed


def test_who_is_ejected_again_stays_out_longer() -> None:
    each = breaker()
    first = each.eject(0.0)
    each.reset()
    assert each.eject(first) > first


def test_one_that_fails_what_its_peers_answer_is_ejected() -> None:
    bad, *good = endpoints(4)
    feed(bad, 0, 5)
    for each in good:
        feed(each, 20, 0)
    assert reason_to_eject(bad, [bad, *good], 1.0) is not None


def test_one_that_fails_a_part_is_ejected_though_it_answers_the_rest() -> None:
    bad, *good = endpoints(4)
    for _ in range(20):
        feed(bad, 2, 1)
    for each in good:
        feed(each, 60, 1)
    assert reason_to_eject(bad, [bad, *good], 1.0) is not None


def test_where_all_fail_alike_none_is_ejected() -> None:
    all_bad = endpoints(4)
    for each in all_bad:
        feed(each, 5, 20)
    assert all(reason_to_eject(each, all_bad, 1.0) is None for each in all_bad)


def test_a_few_failures_long_ago_are_forgotten() -> None:
    bad, *good = endpoints(4)
    feed(bad, 0, 5, now=1.0)
    assert reason_to_eject(bad, [bad, *good], 1.0) is not None
    feed(bad, 1, 1, now=600.0)
    assert reason_to_eject(bad, [bad, *good], 600.0) is None


@given(st.integers(1, 9), st.lists(st.integers(0, 8), max_size=40))
def test_at_most_half_are_out_and_the_last_is_never(count: int, failing: list[int]) -> None:
    serving = endpoints(count)
    for index in failing:
        each = serving[index % count]
        feed(each, 0, 6)
        if reason_to_eject(each, serving, 1.0) is not None:
            each.breaker.eject(1.0)
        out = sum(not each.breaker.closed for each in serving)
        assert out <= count // 2 < count
