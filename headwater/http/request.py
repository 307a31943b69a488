"""What a client asks: a head, and what comes behind it."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote

import httptools

from headwater.http.bodies import BodyBudget
from headwater.http.headers import Headers
from headwater.openai.errors import APIError

_OF_A_HEADER: Final = 128
"""Bytes that the objects of one header take beyond its text."""
_SANE_ID: Final = re.compile(rb"[ -~]{1,128}")


class Admission(Protocol):
    """What was found from a head about who asks; it may take something up that is to be given back."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer, whatever that is."""

    def release(self) -> None:
        """Called once, when the request has ended, however that came."""


@dataclass(slots=True, eq=False)
class Head:
    """A request as far as it is known before its body."""

    id: bytes
    """Its `x-request-id`, or a new one."""
    method: bytes
    target: bytes
    """Path and query as they came, but for a slash at the path's end."""
    path: str
    """Decoded."""
    headers: Headers
    client: str
    """The address that it came from, without the port."""


@dataclass(slots=True, eq=False)
class Request(Head):
    """One request. Handed over whole, or with the `error` to answer it with. Whoever has it is to `end` it."""

    bodies: BodyBudget
    keep_alive: bool
    """Whether the client wants to go on after the answer."""
    http_1_0: bool = False
    body: bytes = b""
    """Decoded, where it came compressed."""
    error: APIError | None = None
    """What to answer instead."""
    admitted: Admission | None = None
    held_head: int = 0
    """Bytes of it that were counted. That of a usual head is not: it is no more than a connection takes anyway."""
    held_body: int = 0

    def hold_head(self) -> bool:
        """Count the head, if it is not counted yet and there is memory for it."""
        if self.held_head:
            return True
        size = head_size(self.target, self.headers)
        if not self.bodies.take(size):
            return False
        self.held_head = size
        return True

    def hold_body(self, count: int) -> bool:
        """Count further bytes of the body, if there is memory for them."""
        if not self.bodies.take(count):
            return False
        self.held_body += count
        return True

    def drop_body(self) -> None:
        """It is not needed any more: give its memory back now rather than at the end."""
        self.body = b""
        self.bodies.give(self.held_body)
        self.held_body = 0

    def end(self) -> None:
        """Give back all that it holds. May be called again, and does nothing then."""
        self.body = b""
        if held := self.held_head + self.held_body:
            self.held_head = self.held_body = 0
            self.bodies.give(held)
        if (admitted := self.admitted) is not None:
            self.admitted = None
            admitted.release()


def head_size(target: bytes, headers: Headers) -> int:
    """Bytes of memory."""
    return len(target) + sum(len(name) + len(value) + _OF_A_HEADER for name, value in headers)


def identity(fields: dict[bytes, bytes]) -> bytes:
    """A request's id: what the client calls it, if that can be written into logs and headers; else a new one."""
    given = fields.get(b"x-request-id")
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return random.randbytes(16).hex().encode()


def origin_form(given: bytes) -> tuple[bytes, str]:
    """The target, path and query, and its path decoded. A slash at the path's end means nothing."""
    target = given if given.startswith(b"/") else _without_host(given)
    path, mark, query = target.partition(b"?")
    if path.endswith(b"/") and path != b"/":
        path = path.rstrip(b"/") or b"/"
        target = path + mark + query
    text = path.decode("latin-1")
    return target, unquote(text) if "%" in text else text


def _without_host(target: bytes) -> bytes:
    """Of a target that is a whole URL, as sent to proxies; others stay as they are."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return target
    path: bytes = url.path or b"/"
    return path + b"?" + url.query if url.query else path
