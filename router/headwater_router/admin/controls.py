"""What the admin API asks of the router: the seam between the two."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from headwater_router.admin.models import EndpointInfo, ModelInfo
from headwater_router.dispatch.records import DecisionRecord, FailureRecord


class Readiness(NamedTuple):
    ready: bool
    content: Mapping[str, Any]
    """Of the answer."""


class Controls(Protocol):
    """Everything is called in the router's loop, and returns at once. Endpoints are told by `EndpointInfo.id`; one that
    has gone meanwhile is no error.
    """

    def readiness(self) -> Readiness: ...

    def metrics(self) -> bytes:
        """The page for Prometheus."""

    def endpoints(self) -> Sequence[EndpointInfo]: ...

    def models(self) -> Sequence[ModelInfo]: ...

    def decisions(self) -> Sequence[DecisionRecord]:
        """The last ones, oldest first."""

    def failures(self) -> Sequence[FailureRecord]:
        """The last ones, oldest first."""

    def cordon(self, endpoint: str, cordoned: bool) -> None:
        """Whether it is kept from new requests."""

    def eject(self, endpoint: str, seconds: float) -> None:
        """Open its breaker for so long."""

    def reset(self, endpoint: str) -> None:
        """Close its breaker, and forget its learned speed."""
