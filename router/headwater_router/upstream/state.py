"""What a connection to an endpoint is doing, and what it may do next.

    IDLE ──> SENT ──> HEAD ──> BODY ──> COMPLETE ──> IDLE      kept, and used again
                        └────────┴─────────┴──> ENDED          all came, and the connection is over
    any  ──> CLOSED                                            by us, or by a failure

A connection becomes IDLE again only when all of an answer has come and none of it is held: so no byte of it can stand
in front of the next.
"""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """See the module."""

    IDLE = "idle"
    """Nothing is asked, and nothing is unread."""
    SENT = "sent"
    """A request is out; no head of an answer has come."""
    HEAD = "head"
    BODY = "body"
    """The first byte of it has come."""
    COMPLETE = "complete"
    """All has come; some may be unread."""
    ENDED = "ended"
    """As complete, but of no use for another request."""
    CLOSED = "closed"


IDLE, SENT, HEAD, BODY, COMPLETE, ENDED, CLOSED = State
NEXT: Final[dict[State, tuple[State, ...]]] = {
    IDLE: (SENT, CLOSED),
    SENT: (HEAD, CLOSED),
    HEAD: (BODY, COMPLETE, ENDED, CLOSED),
    BODY: (COMPLETE, ENDED, CLOSED),
    COMPLETE: (IDLE, ENDED, CLOSED),
    ENDED: (CLOSED,),
    CLOSED: (),
}
