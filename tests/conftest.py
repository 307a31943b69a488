"""For all tests: the same hypothesis examples everywhere, and no log lines."""

import logging

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile("headwater", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headwater")


@pytest.fixture(autouse=True)
def quiet_logs() -> None:
    """Before each test, since one that runs a command in this process sets up logging for all that follow.

    Logging expected failures, with formatted tracebacks, would cost more than the tests themselves.
    """
    structlog.reset_defaults()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
