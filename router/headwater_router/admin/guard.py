"""Who may use the admin API.

With keys: whoever has one. Without keys, and on a loopback address: programs of this machine. A browser on it is one,
too, and runs the scripts of any page: so a request must name this machine as its host (a name of the page's own may
lead here), and must not come from another site.
"""

import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog
from fastapi import Request, Response

from headwater.openai.errors import PermissionDeniedError
from headwater_router.admission.keys import ANYONE, Admitted, Keys

log = structlog.get_logger(__name__)


class Guard:
    """A dependency of all routes of the API."""

    def __init__(self, keys: Keys | None, *, loopback: bool) -> None:
        """`loopback`: the port is bound to nothing else."""
        self._keys = keys
        self._loopback = loopback

    async def __call__(self, request: Request, response: Response) -> AsyncIterator[None]:
        """Raises AuthenticationError, PermissionDeniedError or RateLimitError."""
        admitted = self._admit(request)
        response.headers.update(admitted.headers)
        if request.method != "GET":
            client = request.client.host if request.client else ""
            log.info("admin request", path=request.scope["path"], key=admitted.name, client=client)
        try:
            yield
        finally:
            admitted.release()

    def _admit(self, request: Request) -> Admitted:
        if self._keys is None:
            self._check_neighbour(request)
            return ANYONE
        return self._keys.admit(request.scope["path"], request.headers.raw, time.monotonic())

    def _check_neighbour(self, request: Request) -> None:
        if not self._loopback:
            raise PermissionDeniedError(
                "Without --admin-keys the admin API answers on a loopback address only.", code="admin_closed"
            )
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        foreign = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign or (origin is not None and origin != f"http://{host}") or not _names_this_machine(host):
            raise PermissionDeniedError(
                "Without --admin-keys the admin API answers programs of its own machine only.", code="admin_closed"
            )


def _names_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
