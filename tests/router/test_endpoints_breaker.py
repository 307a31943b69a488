"""The breaker's three states, in virtual time; and what it does to the choice of an endpoint."""

from headwater_router.endpoints.breaker import Breaker, BreakerState
from tests.router.gateway import gateway
from tests.router.upstream import answer_with, upstream


def make() -> Breaker:
    return Breaker(failures=3, window=60, open_for=10)


def fail(breaker: Breaker, *times: float) -> None:
    for now in times:
        assert breaker.allows(now)
        breaker.sent()
        breaker.failed(now)


def test_it_opens_with_enough_failures_within_the_window() -> None:
    breaker = make()
    fail(breaker, 0, 1)
    assert breaker.state(1) is BreakerState.CLOSED
    fail(breaker, 2)
    assert breaker.state(2) is BreakerState.OPEN
    assert not breaker.allows(11.9)


def test_failures_far_apart_do_not_open_it() -> None:
    breaker = make()
    fail(breaker, 0, 40, 80, 120, 160)
    assert breaker.state(160) is BreakerState.CLOSED


def test_a_success_starts_the_count_anew() -> None:
    breaker = make()
    fail(breaker, 0, 1)
    breaker.succeeded()
    fail(breaker, 2, 3)
    assert breaker.state(3) is BreakerState.CLOSED


def test_half_open_lets_one_request_through_and_closes_with_its_success() -> None:
    breaker = make()
    fail(breaker, 0, 1, 2)
    assert breaker.state(12) is BreakerState.HALF_OPEN
    assert breaker.allows(12)
    breaker.sent()
    assert not breaker.allows(12)
    breaker.succeeded()
    assert breaker.state(12) is BreakerState.CLOSED
    assert breaker.allows(12)


def test_a_failure_of_the_trial_opens_it_for_as_long_again() -> None:
    breaker = make()
    fail(breaker, 0, 1, 2, 12)
    assert breaker.state(21.9) is BreakerState.OPEN
    assert breaker.state(22) is BreakerState.HALF_OPEN


def test_a_trial_whose_client_left_says_nothing() -> None:
    breaker = make()
    fail(breaker, 0, 1, 2)
    breaker.sent()
    breaker.abandoned()
    assert breaker.state(12) is BreakerState.HALF_OPEN
    assert breaker.allows(12)


async def test_an_endpoint_that_fails_gets_no_more_requests_while_open_and_then_one() -> None:
    async with upstream() as bad, upstream() as good:
        async with gateway(bad, good, breaker_failures=2, breaker_open=3600.0) as router:
            bad.answer = answer_with(500)
            for _ in range(10):
                assert (await router.post()).status_code == 200
            assert len(bad.exchanges) == 2
            assert await router.metric('headwater_router_endpoint_breaker{endpoint="a"}') == 2
        async with gateway(bad, good, breaker_failures=2, breaker_open=0.001) as router:
            bad.answer = good.answer
            for _ in range(4):
                assert (await router.post()).status_code == 200
            assert await router.metric('headwater_router_endpoint_breaker{endpoint="a"}') == 0
