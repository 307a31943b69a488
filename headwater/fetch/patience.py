"""Trying again what may work in a while, as often and as late as a busy server asks for."""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import structlog

from headwater.fetch.errors import FetchError, TransientError

log = structlog.get_logger(__name__)

T = TypeVar("T")

ATTEMPTS: Final = 8
_FIRST: Final = 1.0
_LONGEST: Final = 60.0
_LONGEST_ASKED: Final = 600.0
"""Seconds; a server that asks for more is not worth waiting for."""


def patiently(call: Callable[[], T]) -> T:
    """Call it until it raises no TransientError, ATTEMPTS times at most. Raises FetchError."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except TransientError as error:
            if attempt == ATTEMPTS - 1:
                raise FetchError(f"{error} (after {ATTEMPTS} attempts)") from error
            wait = min(_FIRST * 2**attempt, _LONGEST) * random.uniform(0.8, 1.2)
            if error.after is not None:
                wait = max(wait, min(error.after, _LONGEST_ASKED))
            log.warning("trying again", reason=str(error), seconds=round(wait, 1))
            time.sleep(wait)
    raise AssertionError("unreachable")


def transient(status: int) -> bool:
    """Whether an HTTP status may be another one in a while."""
    return status in (408, 425, 429) or status >= 500


def retry_after(value: str | None) -> float | None:
    """The header's seconds; it may also be a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
