"""Predicted and actual times stand side by side in the metrics, so that one sees whether to believe the policy."""

import pytest

from headwater_router.gateway.usage import Usage
from headwater_router.outcome import Outcome
from tests.router.dispatching import Dispatching


async def test_what_was_predicted_is_counted_beside_what_became_of_it() -> None:
    at = Dispatching(1, policy="prefix")

    def told(name: str) -> float:
        return at.metrics.registry.get_sample_value(f"headwater_router_{name}_seconds_total", {"model": "m"}) or 0.0

    for _ in range(30):
        dispatch = await at.dispatcher.choose(at.call())
        dispatch.answered(200)
        at.now += 0.2
        dispatch.first_token(at.now)
        at.now += 1.0
        dispatch.ended(Outcome.ANSWERED, at.now, usage=Usage(100, 0, 101))
    assert told("actual_first_token") == pytest.approx(29 * 0.2)  # Nothing was predicted of the first.
    assert told("actual_output") == pytest.approx(29 * 1.0)
    for what in ("first_token", "output"):
        assert told(f"predicted_{what}") == pytest.approx(told(f"actual_{what}"), rel=0.5)
        assert 0 < told(f"mispredicted_{what}") < told(f"actual_{what}")


async def test_nothing_is_counted_where_nothing_is_predicted() -> None:
    at = Dispatching(1, policy="least_loaded")
    dispatch = await at.dispatcher.choose(at.call())
    dispatch.answered(200)
    dispatch.first_token(at.now + 0.2)
    dispatch.ended(Outcome.ANSWERED, at.now + 1, usage=Usage(100, 0, 101))
    assert not at.metrics.registry.get_sample_value("headwater_router_actual_first_token_seconds_total", {"model": "m"})
