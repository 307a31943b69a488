"""For all tests: logging expected failures, with formatted tracebacks, would cost more than the tests themselves."""

import logging

import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
