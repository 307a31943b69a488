"""How all sources are asked: one client that reads what an answer says of itself before its bytes are believed.

A `Site` is a hub, a bucket or a registry: it says how to ask for a key, and what its refusals mean.
"""

import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpcore
import httpx

from headwater.fetch.errors import ChangedError, DifferentError, FetchError, TransientError
from headwater.fetch.patience import retry_after, transient

httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 256 * 1024
"""What asyncio reads at once; cut into the 64 KiB of before, a fetch takes a third more CPU time."""
_TIMEOUT: Final = httpx.Timeout(30.0, read=60.0)
"""Seconds in which something must have happened."""
_LARGEST_DOCUMENT: Final = 128 * 1024 * 1024
_PART: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TELLING: Final = (412, 416)
"""Failures that say something of the file."""


@dataclass(frozen=True, slots=True)
class Asked:
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """An answer that has been read."""

    status: int
    headers: httpx.Headers
    body: bytes


class Site(Protocol):
    name: str
    """For messages."""
    advice: str
    """What to look at where it cannot be reached."""

    def ask(self, key: str) -> Asked:
        """Anew for each request: signatures and tokens run out."""

    async def admitted(self, refused: Document) -> bool:
        """Whether to ask once more, with what `ask` says now."""

    def refusal(self, refused: Document) -> FetchError:
        """In words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes of a file."""

    start: int
    """Of the first of them within the file."""
    size: int | None
    """Of the whole file, if it is said."""
    validator: str | None
    """What `If-Range` takes."""
    partial: bool
    """Whether it is of the range that was asked for, or of all."""
    chunks: AsyncIterator[bytes]


class Content(Protocol):
    """Where a file's bytes come from."""

    def open(self, start: int, stop: int | None, validator: str | None) -> AbstractAsyncContextManager[Answer]:
        """From `start` to before `stop`, or to the end; what comes may begin at 0 all the same.

        Raises TransientError, DifferentError where it does not go with what came before, and FetchError.
        """


def make_client() -> httpx.AsyncClient:
    """Proxies and SSL_CERT_FILE are taken from the environment. Raises FetchError."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)  # `Lines` counts them
    try:
        return httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, follow_redirects=True)
    except (OSError, ValueError, httpx.InvalidURL) as error:
        raise FetchError(f"SSL_CERT_FILE, or the variable of a proxy, cannot be used: {error}") from None


class Transport:
    """Calls raise TransientError and FetchError."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @asynccontextmanager
    async def request(self, site: Site, key: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """An answer that is a success, or that says something of the file."""
        for first in (True, False):
            async with self.send(site, site.ask(key), headers) as answer:
                if answer.is_success or answer.status_code in _TELLING:
                    yield answer
                    return
                refused = Document(answer.status_code, answer.headers, await _read(answer))
                if transient(refused.status):
                    after = retry_after(refused.headers.get("retry-after"))
                    raise TransientError(f"{site.name}: {answer.url.host} answered {refused.status}", after)
                if not (first and await site.admitted(refused)):
                    raise site.refusal(refused)

    async def document(self, site: Site, key: str, headers: Mapping[str, str]) -> Document:
        async with self.request(site, key, headers) as answer:
            return Document(answer.status_code, answer.headers, await _read(answer))

    async def fields(self, site: Site, key: str, headers: Mapping[str, str]) -> tuple[dict[str, Any], Document]:
        """A document that is an object in JSON."""
        document = await self.document(site, key, headers)
        return parsed(site.name, document), document

    @asynccontextmanager
    async def send(self, site: Site, asked: Asked, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        plain = {"Accept-Encoding": "identity"}  # sizes and ranges are those of the file
        with _translated(site):
            async with self._client.stream("GET", asked.url, headers={**plain, **headers, **asked.headers}) as answer:
                yield answer

    async def post(self, site: Site, url: str, data: Mapping[str, str]) -> Document:
        with _translated(site):
            answer = await self._client.post(url, data=dict(data))
            return Document(answer.status_code, answer.headers, answer.content)


class Remote:
    """A file of a site, which may send those that ask elsewhere; where to is remembered as long as it holds."""

    def __init__(self, transport: Transport, site: Site, key: str) -> None:
        self._transport = transport
        self._site = site
        self._key = key
        self._elsewhere: str | None = None

    @asynccontextmanager
    async def open(self, start: int, stop: int | None, validator: str | None) -> AsyncIterator[Answer]:
        headers = {}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if validator is not None:
                headers["If-Range"] = validator
        if self._elsewhere is not None:
            async with self._transport.send(self._site, Asked(self._elsewhere), headers) as answer:
                if answer.is_success or answer.status_code in _TELLING:
                    yield self._read(answer, start)
                    return
            self._elsewhere = None
        async with self._transport.request(self._site, self._key, headers) as answer:
            if answer.history and _origin(answer.url) != _origin(answer.history[0].url):
                self._elsewhere = str(answer.url)
            yield self._read(answer, start)

    def _read(self, answer: httpx.Response, start: int) -> Answer:
        """What it is, by what it says. Nothing is taken for the bytes that were asked for since they were asked for."""
        name, headers = f"{self._site.name}: {self._key}", answer.headers
        if answer.status_code == 412:
            raise ChangedError(f"{name} was changed while it was fetched")
        if headers.get("content-encoding", "identity") != "identity":
            raise FetchError(f"{name} comes compressed, although it was asked for as it is")
        match answer.status_code:
            case 200:
                length = headers.get("content-length", "")
                size = int(length) if length.isdecimal() else None
                return Answer(0, size, _validator(headers), False, answer.aiter_raw())
            case 206:
                part = _PART.fullmatch(headers.get("content-range", ""))
                if part is None or int(part[1]) != start:
                    raise DifferentError(f"{name}: another range came than the one asked for")
                size = None if part[3] == "*" else int(part[3])
                return Answer(start, size, _validator(headers), True, answer.aiter_raw())
            case 416:
                raise DifferentError(f"{name} does not go on at byte {start}")
        raise TransientError(f"{name}: {answer.url.host} answered {answer.status_code}")


def parsed(name: str, document: Document) -> dict[str, Any]:
    """Raises FetchError."""
    try:
        content = json.loads(document.body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        kind = document.headers.get("content-type", "something")
        raise FetchError(f"{name}: {kind} came where a JSON object should be; is it the right address?")
    return content


async def _read(answer: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > _LARGEST_DOCUMENT:
            raise FetchError(f"{answer.url.host} sends more than a list of files can be")
    return bytes(body)


def _validator(headers: httpx.Headers) -> str | None:
    """A weak ETag says that two contents mean the same, not that they have the same bytes."""
    etag: str = headers.get("etag", "")
    return etag if etag.startswith('"') else headers.get("last-modified") or None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


@contextmanager
def _translated(site: Site) -> Iterator[None]:
    """The client's errors become ours here, and nowhere else."""
    name = site.name
    try:
        yield
    except httpx.TooManyRedirects:
        raise FetchError(f"{name}: one redirect leads to another without end") from None
    except httpx.ProxyError as error:
        raise FetchError(
            f"{name}: the proxy refuses: {error}; HTTPS_PROXY and NO_PROXY say which one is asked"
        ) from None
    except httpx.UnsupportedProtocol as error:
        raise FetchError(f"{name}: {error}") from None
    except httpx.TransportError as error:
        if (reason := _untrusted(error)) is not None:
            raise FetchError(
                f"{name}: the certificate is not trusted ({reason}); SSL_CERT_FILE names a file with the CA's"
            ) from None
        reason, nameless = str(error) or type(error).__name__, _has_no_name(error)
        raise TransientError(f"{name} cannot be reached; {site.advice}: {reason}", nameless=nameless) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{name}: {error}") from None


def _untrusted(error: BaseException) -> str | None:
    """Why, if a certificate is the reason."""
    reasons = [each.verify_message for each in _causes(error) if isinstance(each, ssl.SSLCertVerificationError)]
    return reasons[0] if reasons else None


def _has_no_name(error: BaseException) -> bool:
    return any(isinstance(each, socket.gaierror) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
