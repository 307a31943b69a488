"""From the bytes of a client's connection to its requests.

httptools does the parsing proper. What is added: limits, requests that offer to change the protocol, and that whatever
is wrong becomes a request with an `error`, which is answered in its turn like all others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

import httptools

from headwater.openai.errors import APIError, BadRequestError, HeadersTooLargeError, RequestTooLargeError

Headers = list[tuple[bytes, bytes]]
"""Names are in lower case."""


@dataclass(slots=True, eq=False)
class Request:
    """One request, whole."""

    method: bytes
    target: bytes
    """Path and query as they came."""
    path: str
    """Decoded."""
    headers: Headers
    body: bytes
    keep_alive: bool
    """Whether the client wants to go on after the answer."""
    http_1_0: bool = False
    error: APIError | None = None
    """What to answer instead."""


class RequestParser:
    """Feed it bytes in pieces of any length; it calls `deliver` with each request. httptools calls `on_...`."""

    __slots__ = ("_begun", "_body", "_deliver", "_done", "_expect", "_fed", "_head_size", "_headers", "_in_body",
                 "_in_head", "_keep_alive", "_looked", "_max_body", "_max_head", "_owed", "_parser", "_refused",
                 "_size", "_target")  # fmt: skip

    def __init__(
        self, deliver: Callable[[Request], None], expect: Callable[[], None], *, max_head: int, max_body: int
    ) -> None:
        """`expect`: called where the client waits for a word before it sends the body. Limits are in bytes."""
        self._deliver = deliver
        self._expect = expect
        self._max_head = max_head
        self._max_body = max_body
        self._parser = httptools.HttpRequestParser(self)
        self._done = False
        """Nothing that comes after is a request."""
        self._begun = 0
        """Requests that began in the piece that is being parsed."""
        self._fed = 0
        """Length of that piece."""
        self._in_head = self._in_body = self._looked = self._refused = self._keep_alive = False
        self._head_size = 0
        """Bytes of the head so far, where it is spread over several pieces."""
        self._target = b""
        self._headers: Headers = []
        self._body: list[bytes] = []
        self._size = 0
        self._owed = 0
        """Bytes of a body that httptools takes for another protocol's."""

    def feed(self, data: bytes) -> None:
        if self._done:
            return
        between = not self._in_head and not self._in_body
        self._begun, self._fed = 0, len(data)
        try:
            self._parse(data)
        except httptools.HttpParserCallbackError:
            raise  # a mistake of ours
        except httptools.HttpParserError as error:
            self._fail(BadRequestError(f"This is not a valid HTTP request: {error}.", code="invalid_http"))
            return
        if self._in_head:
            self._measure_open_head(between)
        elif self._in_body and not self._looked and not self._refused:
            self._look_ahead()

    def close(self) -> None:
        """Drop what it holds; parser and callbacks keep one another alive otherwise."""
        self._done = True
        del self._parser

    def _parse(self, data: bytes | memoryview) -> None:
        while data and not self._done:
            if self._owed:
                piece, data = bytes(data[: self._owed]), memoryview(data)[self._owed :]
                self._owed -= len(piece)
                self.on_body(piece)
                if not self._owed:
                    self._complete()
                continue
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # Another protocol is offered, and not taken up. The bytes behind are the body, or the next request.
                data = memoryview(data)[upgrade.args[0] :]

    def _measure_open_head(self, between: bool) -> None:
        """A head that does not end is measured by what was fed. `between`: no request was open before this piece."""
        if not self._begun:
            self._head_size += self._fed
        else:
            # Where it began within the piece is not known, unless that is the piece's own beginning.
            self._head_size = self._fed if between and self._begun == 1 else 0
        if self._head_size > self._max_head:
            self._fail(self._head_too_large())

    def _look_ahead(self) -> None:
        """The body is still on its way: is it worth waiting for?"""
        self._looked = True
        headers = dict(self._headers)
        waits = headers.get(b"expect", b"").lower() == b"100-continue" and not self._body
        if int(headers.get(b"content-length", b"0")) > self._max_body:
            # A client that was told so does not send its body, and then nobody knows where the next request begins.
            self._keep_alive = self._keep_alive and not waits
            self._refuse_body()
        elif waits:
            self._expect()

    def _head_too_large(self) -> APIError:
        return HeadersTooLargeError(f"The request's head is larger than the {self._max_head // 1024} KiB allowed.")

    def _fail(self, error: APIError) -> None:
        """Nothing behind this can be made sense of."""
        if self._done:
            return
        self._done = True
        self._deliver(Request(b"", b"", "", [], b"", keep_alive=False, error=error))

    def _refuse_body(self) -> None:
        """Answer now; the rest of the body is read, so that the client gets to see the answer, but not kept."""
        self._refused = True
        self._body = []
        message = f"The request body is larger than the {self._max_body / 2**20:g} MiB that are allowed."
        self._hand_over(RequestTooLargeError(message))

    def _hand_over(self, error: APIError | None = None) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if not self._keep_alive:
            self._done = True
        target = self._target if self._target.startswith(b"/") else _origin_form(self._target)
        http_1_0 = self._parser.get_http_version() == "1.0"
        method = self._parser.get_method()
        self._deliver(Request(method, target, _path(target), self._headers, body, self._keep_alive, http_1_0, error))

    def _complete(self) -> None:
        self._in_body = False
        if not self._refused and not self._done:
            self._hand_over()

    def _complete_offer(self) -> None:
        """Of another protocol, such as Java's clients make of HTTP/2. httptools ends the request before its body."""
        headers = dict(self._headers)
        if b"transfer-encoding" in headers:
            self._fail(BadRequestError("A request that offers an upgrade must tell its length.", code="invalid_http"))
        self._owed = int(headers.get(b"content-length", b"0"))
        if not self._owed:
            self._complete()

    # What httptools calls

    def on_message_begin(self) -> None:
        self._begun += 1
        self._in_head = True
        self._refused = False
        self._target = b""
        self._headers = []
        self._body = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = self._looked = False
        self._in_body = True
        # Asked for now: once the message is complete, the parser has forgotten.
        self._keep_alive = self._parser.should_keep_alive()
        if self._head_size + self._fed > self._max_head:
            size = len(self._target) + sum(len(name) + len(value) for name, value in self._headers)
            if size > self._max_head:
                self._fail(self._head_too_large())
        self._head_size = 0

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._size += len(body)
        if self._size > self._max_body:
            self._refuse_body()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            self._complete_offer()
        else:
            self._complete()


def _path(target: bytes) -> str:
    path = target.partition(b"?")[0].decode("latin-1")
    return unquote(path) if "%" in path else path


def _origin_form(target: bytes) -> bytes:
    """Path and query of a target that is a whole URL, as sent to proxies; others stay as they are."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return target
    path: bytes = url.path or b"/"
    return path + b"?" + url.query if url.query else path
