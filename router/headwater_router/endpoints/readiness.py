"""What is known of whether an endpoint takes requests.

         ┌──────────────────────────────────┐
         v                                  │
NEW ──> READY ──> LATE ──> UNREADY ─────────┘     GONE: from all of them, and for good
         ^ └───────│──────────^
         └─────────┘
"""

from enum import StrEnum
from typing import Final


class Readiness(StrEnum):
    NEW = "new"
    """It has never been ready."""
    READY = "ready"
    LATE = "late"
    """It was ready, and missed a probe or two: that may be the network, so it still gets requests."""
    UNREADY = "unready"
    """It was ready once."""
    GONE = "gone"
    """Nobody names it any more."""

    @property
    def takes_requests(self) -> bool:
        return self in (Readiness.READY, Readiness.LATE)

    def to(self, after: "Readiness") -> "Readiness":
        """The next state. Raises ValueError for one that cannot come next; to stay is no change."""
        if after is not self and after not in _NEXT[self]:
            raise ValueError(f"an endpoint that is {self} cannot become {after}")
        return after


_NEXT: Final = {
    Readiness.NEW: {Readiness.READY, Readiness.GONE},
    Readiness.READY: {Readiness.LATE, Readiness.UNREADY, Readiness.GONE},
    Readiness.LATE: {Readiness.READY, Readiness.UNREADY, Readiness.GONE},
    Readiness.UNREADY: {Readiness.READY, Readiness.GONE},
    Readiness.GONE: set[Readiness](),
}
