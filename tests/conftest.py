"""For all tests: the same hypothesis examples everywhere, and no log lines."""

import logging

import structlog
from hypothesis import HealthCheck, settings

settings.register_profile("headwater", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headwater")

# Logging expected failures, with formatted tracebacks, would cost more than the tests themselves.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
