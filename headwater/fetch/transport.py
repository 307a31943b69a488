"""How all sources are asked: one client that reads what an answer says of itself before its bytes are believed.

A `Site` is a hub, a bucket or a registry: it says how to ask for a key, and what its refusals mean.
"""

import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlencode

import anyio.to_thread
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import DecodeError, HTTPError, InvalidHeader, LocationValueError, ProxyError

from headwater.fetch.client import Client, RedirectsError, Response, UnsendableError
from headwater.fetch.errors import ChangedError, DifferentError, FetchError, TransientError
from headwater.fetch.patience import retry_after, transient

T = TypeVar("T")

_LARGEST_DOCUMENT: Final = 128 * 1024 * 1024
_PART: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_OF_URLLIB3: Final = re.compile(r"HTTPS?Connection(?:Pool)?\([^)]*\): ")
"""What its messages begin with: the server, which we name in words of our own."""
_REFUSED: Final = re.compile(r"Tunnel connection failed: (\d+)")
"""How urllib3 says that a proxy does."""
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
    headers: HTTPHeaderDict
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
    read: Callable[[int], Awaitable[list[bytes]]]
    """Up to so many more, as they come; nothing at the end."""


class Content(Protocol):
    """Where a file's bytes come from."""

    def open(self, start: int, stop: int | None, validator: str | None) -> AbstractAsyncContextManager[Answer]:
        """From `start` to before `stop`, or to the end; what comes may begin at 0 all the same.

        Raises TransientError, DifferentError where it does not go with what came before, and FetchError.
        """


class Transport:
    """Calls raise TransientError and FetchError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @asynccontextmanager
    async def request(self, site: Site, key: str, headers: Mapping[str, str]) -> AsyncIterator[Response]:
        """An answer that is a success, or that says something of the file."""
        for first in (True, False):
            async with self.send(site, site.ask(key), headers) as answer:
                if answer.success or answer.status in _TELLING:
                    yield answer
                    return
                refused = await _read(answer)
                if transient(refused.status):
                    after = retry_after(refused.headers.get("retry-after"))
                    raise TransientError(f"{site.name}: {answer.host} answered {refused.status}", after)
                if not (first and await site.admitted(refused)):
                    raise site.refusal(refused)

    async def document(self, site: Site, key: str, headers: Mapping[str, str]) -> Document:
        async with self.request(site, key, headers) as answer:
            return await _read(answer)

    async def fields(self, site: Site, key: str, headers: Mapping[str, str]) -> tuple[dict[str, Any], Document]:
        """A document that is an object in JSON."""
        document = await self.document(site, key, headers)
        return parsed(site.name, document), document

    @asynccontextmanager
    async def send(self, site: Site, asked: Asked, headers: Mapping[str, str]) -> AsyncIterator[Response]:
        plain = {"Accept-Encoding": "identity"}  # sizes and ranges are those of the file
        with _translated(site):
            answer = await in_thread(self._client.get, asked.url, {**plain, **headers, **asked.headers})
            try:
                yield answer
            finally:
                answer.close()

    async def post(self, site: Site, url: str, data: Mapping[str, str]) -> Document:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        with _translated(site):
            answer = await in_thread(self._client.post, url, urlencode(data).encode(), kind)
            try:
                return await _read(answer)
            finally:
                answer.close()


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
                if answer.success or answer.status in _TELLING:
                    yield self._read(answer, start)
                    return
            self._elsewhere = None
        async with self._transport.request(self._site, self._key, headers) as answer:
            if answer.moved:
                self._elsewhere = answer.url
            yield self._read(answer, start)

    def _read(self, answer: Response, start: int) -> Answer:
        """What it is, by what it says. Nothing is taken for the bytes that were asked for since they were asked for."""
        name, headers = f"{self._site.name}: {self._key}", answer.headers
        if answer.status == 412:
            raise ChangedError(f"{name} was changed while it was fetched")
        if headers.get("content-encoding", "identity") != "identity":
            raise FetchError(f"{name} comes compressed, although it was asked for as it is")
        match answer.status:
            case 200:
                length = headers.get("content-length", "")
                size = int(length) if length.isdecimal() else None
                return Answer(0, size, _validator(headers), False, partial(in_thread, answer.some))
            case 206:
                part = _PART.fullmatch(headers.get("content-range", ""))
                if part is None or int(part[1]) != start:
                    raise DifferentError(f"{name}: another range came than the one asked for")
                size = None if part[3] == "*" else int(part[3])
                return Answer(start, size, _validator(headers), True, partial(in_thread, answer.some))
            case 416:
                raise DifferentError(f"{name} does not go on at byte {start}")
        raise TransientError(f"{name}: {answer.host} answered {answer.status}")


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


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """One that nobody waits for, and that does not keep the program from its end, where this is cancelled.

    What it brings then is dropped, and closed with that.
    """
    return await anyio.to_thread.run_sync(partial(call, *arguments), abandon_on_cancel=True)


async def _read(answer: Response) -> Document:
    body = await in_thread(answer.whole, _LARGEST_DOCUMENT + 1)
    if len(body) > _LARGEST_DOCUMENT:
        raise FetchError(f"{answer.host} sends more than a list of files can be")
    return Document(answer.status, answer.headers, body)


def _validator(headers: HTTPHeaderDict) -> str | None:
    """A weak ETag says that two contents mean the same, not that they have the same bytes."""
    etag: str = headers.get("etag", "")
    return etag if etag.startswith('"') else headers.get("last-modified") or None


@contextmanager
def _translated(site: Site) -> Iterator[None]:
    """The client's errors become ours here, and nowhere else."""
    try:
        yield
    except RedirectsError:
        raise FetchError(f"{site.name}: one redirect leads to another without end") from None
    except UnsendableError:  # which may hold a token
        raise FetchError(
            f"{site.name}: an address or a header cannot be sent; is a token more than one line?"
        ) from None
    except HTTPError as error:
        raise _ours(site, error) from None


def _ours(site: Site, error: HTTPError) -> FetchError:
    name, reason = site.name, _OF_URLLIB3.sub("", str(error), count=1) or type(error).__name__
    if (untrusted := _untrusted(error)) is not None:
        return FetchError(
            f"{name}: the certificate is not trusted ({untrusted}); SSL_CERT_FILE names a file with the CA's"
        )
    if isinstance(error, ProxyError) and (refused := _REFUSED.search(str(error))) and not transient(int(refused[1])):
        return FetchError(f"{name}: the proxy refuses: {reason}; HTTPS_PROXY and NO_PROXY say which one is asked")
    if isinstance(error, (LocationValueError, DecodeError, InvalidHeader)):
        return FetchError(f"{name}: {reason}")
    nameless = _has_no_name(error)
    return TransientError(f"{name} cannot be reached; {site.advice}: {reason}", nameless=nameless)


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
