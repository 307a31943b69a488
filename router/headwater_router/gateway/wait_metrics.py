"""Metrics of the waiting room: how many wait for what, for how long, and what becomes of them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from headwater.tally import Distribution, Tally
from headwater_router.admission.room import WaitReason

_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)


class End(StrEnum):
    """How a wait ended."""

    SENT = "sent"
    LATE = "late"
    """Its time was over."""
    FULL = "full"
    """As many waited as may: it did not begin."""
    FUTILE = "futile"
    """Its turn would have come too late: it did not begin."""
    LEFT = "left"
    """The client did."""
    DRAINING = "draining"


class WaitMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting = Gauge(
            "headwater_router_waiting",
            "Requests that wait, by what for: an endpoint of their model to get ready (not_ready) or to have room "
            "(full), or a file descriptor (no_connection).",
            ("reason",),
            registry=registry,
        )
        ended = Tally(
            "headwater_router_waits",
            "Waits by what they were for, and by what became of them: sent, late, full, futile, left, draining.",
            ("reason", "outcome"),
            registry,
        )
        waited = Distribution(
            "headwater_router_waited_seconds", "How long requests waited, by what for.", _SECONDS, registry, ("reason",)
        )
        self._ended = {(reason, end): ended.labels(reason, end) for reason in WaitReason for end in End}
        self._waited = {reason: waited.labels(reason) for reason in WaitReason}

    def ended(self, reason: WaitReason, end: End) -> None:
        self._ended[reason, end].inc()

    def waited(self, reason: WaitReason, seconds: float) -> None:
        self._waited[reason].observe(seconds)

    def collect(self, waiting: Mapping[WaitReason, int]) -> None:
        for reason, count in waiting.items():
            self._waiting.labels(reason).set(count)
