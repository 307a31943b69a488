"""A request on its way: what it asks for, and where it has been."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headwater_router.admission.room import WaitReason
from headwater_router.dispatch.poison import fingerprint
from headwater_router.endpoints.endpoint import Endpoint, ServedModel
from headwater_router.picker.base import Prompt
from headwater_router.picker.classes import ORDINARY, Kind, Traits
from headwater_router.sends import Sends

if TYPE_CHECKING:
    from headwater_router.dispatch.dispatch import Dispatch


@dataclass(slots=True, eq=False)
class Call:
    """The gateway makes one for each request, and hands it back to the dispatcher in the end, however it ends."""

    path: str
    body: bytes
    """Kept for as long as it may have to be sent once more; then it is dropped, which in a long stream is most of what
    a request takes."""
    model: str
    """As the client calls it."""
    identity: ServedModel
    prompt: Prompt
    conversation: int | None
    """See `picker.weights`; None where there is only one deployment to choose."""
    started: float
    """When the whole request was here."""
    traits: Traits = ORDINARY
    """What its class follows from."""
    kind: Kind | None = None
    """Its class; None where nobody asked for it."""
    only: Endpoint | None = None
    """The one endpoint that knows what the request is about."""
    request_id: bytes = b""
    key_name: str = ""
    """Of the client's API key."""
    deadline: float | None = None
    """For the first piece of content, over all tries; None until it was sent for the first time."""
    waited: dict[WaitReason, float] = field(default_factory=dict)
    """Seconds, in the waiting room."""
    forgiven: int = 0
    """Stays that it had before it waited there last."""
    connected: bool = False
    """A file descriptor is counted for its connection to an endpoint."""
    stays: "list[Dispatch]" = field(default_factory=list)
    """At endpoints, the latest last."""
    tried: "set[Dispatch]" = field(default_factory=set)
    """Stays at endpoints that it is not sent to again."""
    doubtful: "set[Dispatch]" = field(default_factory=set)
    """Stays at those that it is sent to again only where there is no other."""
    suspects: "list[Dispatch]" = field(default_factory=list)
    """Failures of which it is not known yet whose fault they are."""
    insisted: bool = False
    """It was sent to an endpoint that wants nothing for now, because there was no other: once is enough."""
    sends: Sends = field(default_factory=Sends)
    in_budget: int = 0
    """The stay, by its `attempt`, that is a retry which counts in the budget now; 0: none."""
    _fingerprint: bytes = field(default=b"", init=False)

    @property
    def fingerprint(self) -> bytes:
        """What the body is known by, also when it is dropped."""
        return self._fingerprint or fingerprint(self.path, self.body)

    def forget_body(self) -> None:
        """From now on it is sent nowhere else."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self.path, self.body)
            self.body = b""

    def forget_stays(self) -> None:
        """All that there was to tell of it is told. A stay knows its call; were it to go on the other way round, each
        request would be a circle that only the garbage collector takes apart."""
        for stays in (self.stays, self.tried, self.doubtful):
            stays.clear()
