"""What an endpoint has to do in all, where it is several data-parallel engines: for people, and for their metrics."""

from collections.abc import Iterable
from typing import NamedTuple

from headwater_router.endpoints.endpoint import Endpoint


class Total(NamedTuple):
    """As in `Load`."""

    in_flight: int
    penalty: int
    prefill_tokens: int
    prefill_rate: float
    reported_running: int | None
    reported_waiting: int | None
    reported_cache_usage: float | None
    """The mean."""


def total(endpoint: Endpoint) -> Total:
    loads = [target.load for target in endpoint.targets]
    usages = [load.reported_cache_usage for load in loads if load.reported_cache_usage is not None]
    return Total(
        endpoint.in_flight,
        sum(load.penalty for load in loads),
        sum(load.prefill_tokens for load in loads),
        sum(load.prefill_rate for load in loads),
        sum_of_known(load.reported_running for load in loads),
        sum_of_known(load.reported_waiting for load in loads),
        sum(usages) / len(usages) if usages else None,
    )


def sum_of_known(values: Iterable[int | None]) -> int | None:
    """None where none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
