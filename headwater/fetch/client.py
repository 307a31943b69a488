"""The one HTTP client of all sources: urllib3, which blocks, for threads.

A body goes from the kernel into pieces as large as they come, and those are written and counted as they are. With
httpx, h11 and asyncio, which copy it from one layer to the next, half of a fetch's CPU time was theirs.
"""

import contextlib
import os
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import make_headers, parse_url

from headwater.fetch.errors import FetchError

TIMEOUT: Final = urllib3.Timeout(connect=30.0, read=60.0)
"""Seconds in which something must have happened."""
_READ: Final = 1024 * 1024
"""What the kernel is asked for at once."""
_MOMENT: Final = 0.5
"""Seconds after which what has come is said."""
_REDIRECTS: Final = 20
_OURS_ALONE: Final = ("authorization", "cookie")
"""Headers that are for whoever was asked first."""
_PORTS: Final = {"http": 80, "https": 443}


class RedirectsError(Exception):
    """One leads to another."""


class UnsendableError(Exception):
    """What is no address, or cannot be a header."""


class Pool(Protocol):
    """As urllib3 has it, of whose parts this one is needed."""

    def urlopen(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse: ...


class Route(Protocol):
    def __call__(self, url: str, /) -> Pool:
        """Who brings a request there."""


class Response:
    """An answer whose body may still come. Calls block, and raise urllib3's errors."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, moved: bool) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = url
        """Where it came from, after all redirects."""
        self.moved = moved
        """To another server."""
        self._response = response
        self._broken: HTTPError | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def success(self) -> bool:
        return 200 <= self.status < 300

    def some(self, most: int) -> list[bytes]:
        """What comes in a moment, as it is; nothing at the end. Where the line breaks, what came before is not lost."""
        if self._broken is not None:
            raise self._broken
        pieces: list[bytes] = []
        size, until = 0, time.monotonic() + _MOMENT
        try:
            while size < most and time.monotonic() < until:
                piece = self._response.read1(min(most - size, _READ), decode_content=False)
                if not piece:
                    break
                pieces.append(piece)
                size += len(piece)
        except HTTPError as error:
            if not pieces:
                raise
            self._broken = error
        return pieces

    def whole(self, most: int) -> bytes:
        """Up to so many bytes, as they were meant."""
        return self._response.read(most, decode_content=True)

    def close(self) -> None:
        """Also while another thread waits for bytes, which is woken. A line whose bytes all came is kept."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._response.shutdown()
        self._response.close()


class Client:
    def __init__(self, route: Route) -> None:
        self._route = route

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """Wherever it leads. What is for one server alone is not told to another. Raises urllib3's errors and ours."""
        first = url
        for _ in range(_REDIRECTS + 1):
            answer = self._send("GET", url, headers=headers)
            to = answer.get_redirect_location()
            if not to:
                return Response(answer, url, _origin(url) != _origin(first))
            answer.drain_conn()
            to = urljoin(url, to)
            if not may_know(to, url):
                headers = {name: value for name, value in headers.items() if name.lower() not in _OURS_ALONE}
            url = to
        raise RedirectsError

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        return Response(self._send("POST", url, headers=headers, body=body), url, False)

    def _send(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        try:
            pool = self._route(url)
            return pool.urlopen(method, url, redirect=False, retries=False, preload_content=False, **options)
        except HTTPError:  # of which some are ValueErrors, too
            raise
        except ValueError as error:
            raise UnsendableError from error


def make_client() -> Client:
    """Proxies and certificates are taken from the environment. Raises FetchError."""
    try:
        return Client(_Routes())
    except (OSError, ValueError, HTTPError) as error:
        raise FetchError(f"SSL_CERT_FILE, or the variable of a proxy, cannot be used: {error}") from None


class _Routes:
    """The pools of this machine: one without a proxy, and one for each that the environment names."""

    def __init__(self) -> None:
        own, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        trusted = None if folder and not own else own or certifi.where()
        context = ssl.create_default_context(cafile=trusted, capath=None if trusted else folder)
        # Not limited here: `Lines` counts them.
        options: dict[str, Any] = {"ssl_context": context, "timeout": TIMEOUT, "maxsize": 64}
        self._direct = urllib3.PoolManager(**options)
        self._proxies = {
            scheme: _proxy(url, options) for scheme, url in getproxies().items() if scheme in (*_PORTS, "all")
        }

    def __call__(self, url: str) -> Pool:
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme) or self._proxies.get("all")
        if proxy is None or any(proxy_bypass(name) for name in (parts.hostname or "", parts.netloc)):
            return self._direct
        return proxy


def _proxy(url: str, options: Mapping[str, Any]) -> urllib3.ProxyManager:
    url = url if "://" in url else f"http://{url}"
    login = parse_url(url).auth
    headers = make_headers(proxy_basic_auth=unquote(login)) if login else None
    return urllib3.ProxyManager(url, proxy_headers=headers, **options)


def may_know(to: str, url: str) -> bool:
    """The same server, also where it only wants to be spoken to in secret from now on."""
    there, here = urlsplit(to), urlsplit(url)
    secret = (there.scheme, here.scheme) == ("https", "http") and _origin(to)[1:] == (here.hostname, 443)
    return _origin(to) == _origin(url) or (secret and _port(here) == 80)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, _port(parts)


def _port(parts: SplitResult) -> int | None:
    return parts.port or _PORTS.get(parts.scheme)
