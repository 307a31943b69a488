"""From the bytes of a client's connection to its requests.

httptools does the parsing proper. What is added: limits, what is decided from a head before its body is read, requests
that offer to change the protocol, and that whatever is wrong becomes a request with an `error`, which is answered in
its turn like all others.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

import httptools
import structlog

from headwater.http.bodies import BodyBudget, out_of_memory
from headwater.http.encoding import Decoder, decoder
from headwater.http.headers import Headers
from headwater.http.request import Admission, Head, Request, identity, origin_form
from headwater.openai.errors import (
    APIError,
    BadRequestError,
    HeadersTooLargeError,
    InternalServerError,
    RequestTooLargeError,
)

log = structlog.get_logger(__name__)

Admit = Callable[[Head], Admission | None]
"""Called with each head, before its body is read. Raises APIError for one that is not let in."""

_MOST_HEADERS: Final = 256
"""Each takes many times its bytes."""
_USUAL_HEAD: Final = 4096
"""Bytes up to which a head is not counted as held."""
_MOST_AT_ONCE: Final = 32
"""Requests that may begin in what is read at once: the shortest take a hundred times their bytes."""
_MOST_DISCARDED: Final = 2**20
"""Bytes that are read of a body that nobody wants, so that the connection can go on."""
_MOST_DIGITS: Final = 19
"""Of a content-length. llhttp takes any number of zeros in front, and Python reads no number of thousands of digits."""
_FRAMING: Final = 4
"""A body's bytes for one that frames them: its chunks' sizes and extensions, and its trailer."""


class Stage(StrEnum):
    """Where in the client's bytes the parser is."""

    BETWEEN = "between"
    """Nothing of the next request has come."""
    HEAD = "head"
    BODY = "body"
    ENDED = "ended"
    """Nothing that comes is a request."""


_BETWEEN, _HEAD, _BODY, _ENDED = Stage
"""In Python 3.11 a member takes ten times as long to find in its class."""


class _FramingError(Exception):
    """Nothing behind the head can be made sense of."""


class RequestParser:
    """Feed it bytes in pieces of any length; it calls `deliver` with each request. httptools calls `on_...`."""

    __slots__ = ("_admit", "_begun", "_bodies", "_body", "_client", "_decoder", "_deliver", "_discarded", "_expect",
                 "_fed", "_framing", "_head_size", "_headers", "_held", "_length", "_max_body", "_max_head", "_owed",
                 "_parser", "_raw", "_request", "_target", "_waits", "stage")  # fmt: skip

    def __init__(
        self,
        deliver: Callable[[Request], None],
        expect: Callable[[], None],
        *,
        max_head: int,
        max_body: int,
        bodies: BodyBudget,
        admit: Admit | None = None,
        client: str = "",
    ) -> None:
        """`expect`: called where the client waits for a word before it sends the body. Limits are in bytes."""
        self._deliver = deliver
        self._expect = expect
        self._max_head = max_head
        self._max_body = max_body
        self._bodies = bodies
        self._admit = admit
        self._client = client
        self._parser = httptools.HttpRequestParser(self)
        self.stage = _BETWEEN
        self._begun = 0
        """Requests that began in the piece that is being parsed."""
        self._fed = 0
        """Length of that piece."""
        self._head_size = 0
        """Bytes of the head so far, where it is spread over several pieces."""
        self._held = 0
        """Bytes that were counted for it."""
        self._target = b""
        self._headers: Headers = []
        self._request: Request | None = None
        """Whose body is being read. None where nobody wants it: the request was answered from its head."""
        self._body: bytes | bytearray = b""
        self._decoder: Decoder | None = None
        self._raw = self._framing = self._discarded = 0
        """Bytes of the body as they came, of what frames them, and of those that nobody wanted."""
        self._length = 0
        """Of the body, as its head tells it."""
        self._waits = False
        """The client wants to be told to send the body."""
        self._owed = 0
        """Bytes of a body that httptools takes for another protocol's."""

    def feed(self, data: bytes) -> None:
        before = self.stage
        if before is _ENDED:
            return
        raw, self._begun, self._fed = self._raw, 0, len(data)
        try:
            self._parse(data)
        except httptools.HttpParserCallbackError:
            log.exception("a request could not be read")
            self.fail(InternalServerError("The server failed on this request; its log says why."))
            return
        except httptools.HttpParserError as error:
            self.fail(_invalid(f"This is not a valid HTTP request: {error}."))
            return
        if self.stage is _HEAD:
            self._measure_open_head(before)
        elif self.stage is _BODY:
            if before is _BODY and not self._begun:
                self._measure_framing(len(data) - (self._raw - raw))
            if self._waits and not self._raw:
                self._waits = False
                self._expect()

    def fail(self, error: APIError) -> None:
        """Answer the request that is being read with this. Nothing behind it can be made sense of."""
        if self.stage is _ENDED:
            return
        request = self._request
        if request is None and self.stage is _BODY:
            self.stage = _ENDED  # It has its answer.
            return
        self._let_go_of_head()
        if request is None:
            known = dict(self._headers) if self.stage is _HEAD else {}
            request = Request(identity(known), b"", b"", "", [], self._client, self._bodies, keep_alive=False)
        request.keep_alive = False
        self._refuse(request, error)

    @property
    def keeps_body(self) -> bool:
        """Whether a body is being read that somebody wants."""
        return self.stage is _BODY and self._request is not None

    def close(self) -> None:
        """Drop what it holds; parser and callbacks keep one another alive otherwise."""
        self.stage = _ENDED
        self._let_go_of_head()
        self._body = b""
        if self._request is not None:
            self._request.end()
            self._request = None
        del self._parser

    def _parse(self, data: bytes | memoryview) -> None:
        while data and self.stage is not _ENDED:
            if self._owed:
                piece, data = bytes(data[: self._owed]), memoryview(data)[self._owed :]
                self._owed -= len(piece)
                self.on_body(piece)
                if not self._owed and self.stage is _BODY:
                    self._complete()
                continue
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # Another protocol is offered, and not taken up. The bytes behind are the body, or the next request.
                data = memoryview(data)[upgrade.args[0] :]

    # Heads

    def _measure_open_head(self, before: Stage) -> None:
        """A head that does not end is measured by what was fed. `before`: where this piece began."""
        # Where it began within the piece is not known, unless that is the piece's own beginning.
        if not self._begun or (self._begun == 1 and before is _BETWEEN):
            self._head_size += self._fed
        if self._head_size > self._max_head or len(self._headers) > _MOST_HEADERS:
            self.fail(self._head_too_large())
        elif self._bodies.take(self._fed):
            self._held += self._fed
        else:
            self.fail(out_of_memory())

    def _let_go_of_head(self) -> None:
        self._bodies.give(self._held)
        self._head_size = self._held = 0

    def _check_head(self, request: Request) -> None:
        """Of more than the usual size. Raises APIError."""
        size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        if size > self._max_head or len(request.headers) > _MOST_HEADERS:
            raise self._head_too_large()
        if size > _USUAL_HEAD and not request.hold_head():
            raise out_of_memory()

    def _judge(self, request: Request, fields: dict[bytes, bytes]) -> None:
        """Whether its body is to be read. Raises APIError."""
        if self._admit is not None:
            request.admitted = self._admit(request)
        if self._length > self._max_body:
            raise self._body_too_large()
        if (coding := fields.get(b"content-encoding")) is not None:
            self._decoder = decoder(coding, self._max_body)
            request.headers = [each for each in request.headers if each[0] != b"content-encoding"]

    def _announced(self, fields: dict[bytes, bytes]) -> int:
        """Bytes of the body, where they are told before it; else 0. Raises _FramingError where it has no clear end."""
        if b"transfer-encoding" in fields:
            codings = [value.strip().lower() for name, value in self._headers if name == b"transfer-encoding"]
            if codings != [b"chunked"]:
                raise _FramingError("The only transfer-encoding is chunked.")
        if (given := fields.get(b"content-length")) is None:
            return 0
        if len(given) > _MOST_DIGITS:
            raise _FramingError(f"A content-length has at most {_MOST_DIGITS} digits.")
        return int(given)

    def _head_too_large(self) -> APIError:
        return HeadersTooLargeError(
            f"The request's head is larger than the {self._max_head // 1024} KiB allowed, or has more than "
            f"{_MOST_HEADERS} headers."
        )

    # Bodies

    def _measure_framing(self, count: int) -> None:
        """Of a chunked body it may be anything: chunks of a byte each, endless extensions, a trailer without end."""
        self._framing += count
        if self._framing > self._max_head + self._raw // _FRAMING:
            self.fail(_invalid("The body comes in chunks that are too small, or with too much around them."))

    def _refuse(self, request: Request, error: APIError, rest: int | None = None) -> None:
        """Answer now. What is left of the body is read, so that the client gets to see the answer, but not kept.

        `rest`: its bytes, if they are known. A connection that ends with the answer costs less than a long rest.
        """
        self._body = b""
        self._decoder = None
        self._discarded = 0
        request.drop_body()
        request.error = error
        # A client that was told so does not send its body, and then nobody knows where the next request begins.
        request.keep_alive = request.keep_alive and not self._waits and (rest or 0) <= _MOST_DISCARDED
        self._hand_over(request)

    def _discard(self, count: int) -> None:
        self._discarded += count
        if self._discarded > _MOST_DISCARDED:
            self.stage = _ENDED

    def _body_too_large(self) -> APIError:
        return RequestTooLargeError(
            f"The request body is larger than the {self._max_body / 2**20:g} MiB that are allowed."
        )

    # The request is here

    def _complete(self) -> None:
        self.stage = _BETWEEN
        self._headers = []
        request = self._request
        if request is None:
            return
        if self._decoder is not None:
            try:
                self._decoder.finish()
            except APIError as error:
                self._refuse(request, error)
                return
            self._decoder = None
        request.body, self._body = bytes(self._body), b""
        self._hand_over(request)

    def _hand_over(self, request: Request) -> None:
        if not request.keep_alive:
            self.stage = _ENDED
        self._request = None
        self._deliver(request)

    def _complete_offer(self) -> None:
        """Of another protocol, such as Java's clients make of HTTP/2. httptools ends the request before its body."""
        headers = dict(self._headers)
        if b"transfer-encoding" in headers:
            self.fail(_invalid("A request that offers an upgrade must tell its length."))
            return
        self._owed = self._length
        if not self._owed:
            self._complete()

    # What httptools calls

    def on_message_begin(self) -> None:
        if self.stage is _ENDED:
            return
        self._begun += 1
        self.stage = _HEAD
        self._target = b""
        self._headers = []
        if self._begun > _MOST_AT_ONCE:
            self.fail(_invalid(f"More than {_MOST_AT_ONCE} requests were sent without waiting for an answer."))

    def on_url(self, url: bytes) -> None:
        if self.stage is _HEAD:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.stage is _HEAD:  # else it is a trailer
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.stage is _ENDED:
            return
        self.stage = _BODY
        self._raw = self._framing = 0
        parser, fields = self._parser, dict(self._headers)
        target, path = origin_form(self._target)
        request = self._request = Request(
            identity(fields),
            parser.get_method(),
            target,
            path,
            self._headers,
            self._client,
            self._bodies,
            # Asked for now: once the message is complete, the parser has forgotten.
            parser.should_keep_alive(),
            parser.get_http_version() == "1.0",
        )
        self._waits = b"expect" in fields and fields[b"expect"].lower() == b"100-continue"
        size = self._head_size + self._fed
        self._let_go_of_head()
        self._length = 0
        try:
            self._length = self._announced(fields)
            if size > _USUAL_HEAD or size > self._max_head or len(self._headers) > _MOST_HEADERS:
                self._check_head(request)
            self._judge(request, fields)
        except HeadersTooLargeError as error:
            self.fail(error)
        except _FramingError as error:
            self.fail(_invalid(str(error)))
        except APIError as error:
            self._refuse(request, error, self._length)

    def on_body(self, body: bytes) -> None:
        self._raw += len(body)
        request = self._request
        if request is None or self.stage is _ENDED:
            self._discard(len(body))
            return
        try:
            if self._decoder is not None:
                body = self._decoder.decode(body)
            size = len(body)
            if len(self._body) + size > self._max_body:
                raise self._body_too_large()
            if not request.hold_body(size):
                raise out_of_memory()
        except APIError as error:
            self._refuse(request, error)
            return
        if not self._body:
            self._body = body
        else:
            # In one place, however small the pieces are: an object for each would take many times its bytes.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if self.stage is _ENDED:
            return
        if self._parser.should_upgrade():
            self._complete_offer()
        else:
            self._complete()


def _invalid(message: str) -> APIError:
    return BadRequestError(message, code="invalid_http")
