"""Remembers how an endpoint fares, and keeps requests away from one that was ejected until its probe has tried it.

closed ── ejected by `endpoints.ejection` ──> open ── its time is over ──> half-open ── a probe succeeds ──> closed

What counts are requests that this endpoint failed and another one did not: whose fault a failure was is for
`dispatch` to find out, and only then is it told here. No request of a user tries out whether an endpoint works again.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Final

_LONGEST: Final = 10.0
"""Times `open_for`: an endpoint that is ejected again and again stays out longer each time, up to this."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """All times are monotonic seconds, given by the caller."""

    def __init__(self, *, failures: int, window: float, open_for: float) -> None:
        """`failures`: least number that makes an endpoint suspicious. `window`: seconds after which what happened
        counts a third."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when requests may go there again, or may no longer."""
        self._least = failures
        self._window = window
        self._open_for = open_for
        self._answered = self._failed = 0.0
        """Counts that fade."""
        self._faded_at = 0.0
        self._in_a_row = 0
        self._closed_again: float | None = None
        """When it is to be tried; None while closed."""
        self.ejections = 0
        """Since it last went well for long."""

    def state(self, now: float) -> BreakerState:
        if self._closed_again is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if now >= self._closed_again else BreakerState.OPEN

    @property
    def closed(self) -> bool:
        """Whether requests may go there."""
        return self._closed_again is None

    def answered(self, now: float) -> None:
        self._fade(now)
        self._answered += 1
        self._in_a_row = 0

    def failed(self, now: float) -> None:
        self._fade(now)
        self._failed += 1
        self._in_a_row += 1

    @property
    def suspicious(self) -> bool:
        """Whether it has failed often enough for a comparison with its peers to mean anything."""
        return self._failed > self._least - 0.5

    @property
    def only_fails(self) -> bool:
        return self._in_a_row >= self._least

    def error_share(self, now: float) -> float:
        """Of what it was sent lately, 0 to 1."""
        self._fade(now)
        total = self._answered + self._failed
        return self._failed / total if total > 0.5 else 0.0

    def eject(self, now: float, seconds: float | None = None) -> float:
        """Returns the seconds that it is out for: `seconds` if given, else the longer the more often."""
        if self.ejections and now - self._faded_at > _LONGEST * self._open_for:
            self.ejections = 0
        self.ejections += 1
        if seconds is None:
            seconds = self._open_for * min(self.ejections, _LONGEST)
        self._closed_again = now + seconds
        self.on_change()
        return seconds

    def probed(self, now: float) -> None:
        """A probe succeeded."""
        if self.state(now) is BreakerState.HALF_OPEN:
            self.reset()

    def reset(self) -> None:
        """Close it, and forget what led to it; not how often it was ejected."""
        self._closed_again = None
        self._answered = self._failed = 0.0
        self._in_a_row = 0
        self.on_change()

    def _fade(self, now: float) -> None:
        if now > self._faded_at:
            factor = math.exp((self._faded_at - now) / self._window)
            self._answered *= factor
            self._failed *= factor
            self._faded_at = now
