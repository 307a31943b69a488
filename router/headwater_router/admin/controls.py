"""What the admin port asks of the router: the seam between the two."""

from collections.abc import Sequence
from typing import Protocol

from headwater_router.admin.models import EndpointInfo, ModelInfo
from headwater_router.dispatch.records import DecisionRecord, FailureRecord


class Page(Protocol):
    """An answer that is ready to be sent."""

    @property
    def status(self) -> int: ...

    @property
    def content_type(self) -> str: ...

    @property
    def body(self) -> bytes: ...


class Pages(Protocol):
    """What is served on the clients' port where there is no admin port."""

    def ready(self) -> Page: ...

    def prometheus(self) -> Page: ...

    def load(self) -> Page:
        """Of the metrics those that replicas are scaled by."""

    def version(self) -> Page: ...


class Controls(Protocol):
    """Everything is called in the router's loop, and returns at once. Endpoints are told by `EndpointInfo.id`; one that
    has gone meanwhile is no error.
    """

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
