"""Which endpoint is to get nothing for a while: one that fails far more than its peers, as outlier ejection has it.

Where all fail alike, the cause is not one endpoint, and to take them out one by one would only end the service. So an
endpoint is compared with those that serve the same model, at most half of them are out at a time, and the last is
never.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from headwater_router.endpoints.endpoint import Endpoint

_FACTOR: Final = 2.0
_MARGIN: Final = 0.1
"""An error share above this and twice that of the peers is far above it."""


class Reason(StrEnum):
    FAILING = "failing"
    """It failed one request after the other."""
    OUTLIER = "outlier"
    """It failed far more of them than its peers."""
    ASKED = "asked"
    """Somebody asked for it."""


def reason_to_eject(endpoint: Endpoint, serving: Sequence[Endpoint], now: float) -> Reason | None:
    """None: it stays. `serving`: all endpoints of the model, this one among them."""
    breaker = endpoint.breaker
    if not (breaker.closed and breaker.suspicious) or not _may_lose_one(serving):
        return None
    peers = [peer.breaker.error_share(now) for peer in serving if peer is not endpoint]
    usual = sum(peers) / len(peers)
    share = breaker.error_share(now)
    if share <= _FACTOR * usual + _MARGIN:
        return None
    return Reason.FAILING if breaker.only_fails else Reason.OUTLIER


def _may_lose_one(serving: Sequence[Endpoint]) -> bool:
    out = sum(not endpoint.breaker.closed for endpoint in serving)
    return out + 1 <= len(serving) // 2
