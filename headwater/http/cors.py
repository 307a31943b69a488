"""Browsers: a page from another origin may ask here, and read the answer, only if the answer says so (CORS)."""

from collections.abc import Sequence
from typing import Final

from headwater.http.headers import Headers
from headwater.http.request import Head

_EXPOSED: Final = (
    b"x-request-id, x-headwater-endpoint, x-headwater-decision, retry-after, x-ratelimit-limit-requests, "
    b"x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
)
"""Headers of an answer that scripts may read."""
_METHODS: Final = b"GET, HEAD, POST"
_REMEMBERED: Final = b"600"
"""Seconds that a browser need not ask again."""


class Cors:
    """For pages of some origins. Credentials that a browser adds by itself, such as cookies, are never asked for."""

    def __init__(self, origins: Sequence[str]) -> None:
        """`origins`: as in `https://chat.example`; `*` stands for all."""
        self._all = "*" in origins
        self._origins = frozenset(origin.rstrip("/").encode() for origin in origins)

    def asks_first(self, head: Head) -> bool:
        """Whether a browser wants to know if a page may ask. It does so without any key."""
        if head.method != b"OPTIONS" or self._allowed(head) is None:
            return False
        return any(name == b"access-control-request-method" for name, _ in head.headers)

    def yes(self, head: Head) -> Headers:
        """Of the answer to that."""
        wanted = b", ".join(value for name, value in head.headers if name == b"access-control-request-headers")
        headers = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", _REMEMBERED)]
        return [*headers, (b"access-control-allow-headers", wanted)] if wanted else headers

    def applied(self, head: Head, headers: Headers) -> Headers:
        """An answer's headers with those that the page's browser looks for. An engine's own are not among them."""
        kept = list(headers)
        if (allowed := self._allowed(head)) is not None:
            kept += ((b"access-control-allow-origin", allowed), (b"access-control-expose-headers", _EXPOSED))
        if not self._all:
            kept.append((b"vary", b"origin"))
        return kept

    def _allowed(self, head: Head) -> bytes | None:
        origin = next((value for name, value in head.headers if name == b"origin"), None)
        if origin is None:
            return None
        if self._all:
            return b"*"
        return origin if origin in self._origins else None
