"""Keeps requests away from an endpoint that fails them, and finds out when it no longer does.

closed ── enough failures within the window ──> open ── after a while ──> half-open ── one request succeeds ──> closed
                                                 ^                            │
                                                 └──────── it fails ──────────┘
"""

from collections import deque
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """All times are monotonic seconds, given by the caller."""

    def __init__(self, *, failures: int, window: float, open_for: float) -> None:
        self._limit = failures
        self._window = window
        self._open_for = open_for
        self._failures: deque[float] = deque(maxlen=failures)
        self._opened_at: float | None = None
        self._trial = False
        """A request is finding out whether the endpoint works again."""

    def state(self, now: float) -> BreakerState:
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if now - self._opened_at >= self._open_for else BreakerState.OPEN

    def allows(self, now: float) -> bool:
        """Whether a request may go there now."""
        return self._opened_at is None or (self.state(now) is BreakerState.HALF_OPEN and not self._trial)

    def sent(self) -> None:
        """A request goes there; while half-open it is the only one."""
        self._trial = self._opened_at is not None

    def succeeded(self) -> None:
        self._failures.clear()
        self._opened_at = None
        self._trial = False

    def failed(self, now: float) -> None:
        self._trial = False
        self._failures.append(now)
        full = len(self._failures) == self._limit and now - self._failures[0] <= self._window
        if self._opened_at is not None or full:
            self._opened_at = now

    def abandoned(self) -> None:
        """The request ended without saying anything of the endpoint: its client left."""
        self._trial = False
