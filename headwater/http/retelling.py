"""Answers to clients of another API than the one that endpoints are asked in: `headwater.apis` with a socket.

What the router does with a request and its answer, tries and errors and all, it does with a chat completion. Between it
and the client's connection stands a `Retelling`, which is written to like one.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import structlog

from headwater.apis import ApiEvent, Exchange
from headwater.apis.base import BrokenAnswerError
from headwater.http.answering import Answering
from headwater.http.headers import Headers, is_stream
from headwater.http.replies import JSON
from headwater.http.whole_events import SEPARATOR, WholeEvents
from headwater.openai.errors import BadGatewayError

log = structlog.get_logger(__name__)

_LONGEST: Final = 16 << 20
"""Bytes of an answer that is not streamed. No model writes as much."""
_LONGEST_EVENT: Final = 8 << 20
_OWN: Final = frozenset((b"content-type", b"content-length", b"content-encoding"))
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Retelling:
    """Of the answer to one request. A stream is told as it comes, a document once it is whole."""

    __slots__ = ("_body", "_client", "_events", "_exchange", "_head", "answer_began")

    def __init__(self, client: Answering, exchange: Exchange) -> None:
        self._client = client
        self._exchange = exchange
        self._head: tuple[int, Headers] | None = None
        """Of a document that is on its way."""
        self._body = bytearray()
        self._events: _Events | None = None
        self.answer_began = False

    @property
    def write_paused(self) -> bool:
        return self._client.write_paused

    @property
    def left(self) -> bool:
        return self._client.left

    def begin(self, status: int, headers: Headers) -> None:
        self.answer_began = True
        if self._exchange.streams and is_stream(headers):
            self._events = _Events(self._exchange)
            self._client.begin(status, [each for each in headers if each[0] != b"content-length"])
        else:
            self._head = status, headers

    def write(self, piece: bytes) -> bool:
        if self._events is not None:
            return not (told := self._events.feed(piece)) or self._client.write(told)
        if len(self._body) <= _LONGEST:  # Of a longer one it is enough to know that.
            self._body += piece
        return True

    def relay(self, piece: bytes) -> None:
        if self._events is None:
            self.write(piece)
        elif told := self._events.feed(piece):
            self._client.relay(told)

    def end(self, piece: bytes = b"") -> None:
        if self._events is not None:
            self._client.end(self._events.feed(piece) + self._events.end())
            return
        assert self._head is not None
        self.write(piece)
        status, headers = self._head
        self._head = None
        status, document = _told(self._exchange, status, bytes(self._body))
        kept = [each for each in headers if each[0] not in _OWN]
        self._client.answer(status, [*JSON, *kept], _encode(document))

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.begin(status, headers)
        self.end(body)

    async def drained(self) -> None:
        await self._client.drained()

    def close(self) -> None:
        """Nobody writes any more. Raises BadGatewayError where a document has not come whole."""
        if self._head is not None:
            self.answer_began = False
            self._head = None
            raise BadGatewayError("The endpoint broke off its answer.", code="endpoint_lost")


def _told(exchange: Exchange, status: int, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        said = _decode(body) if len(body) <= _LONGEST else None
    except _UNREADABLE:
        said = None
    if status >= 400:
        error = said.get("error") if isinstance(said, dict) else None
        told = exchange.told(error) if isinstance(error, dict) else {"message": "The endpoint failed."}
        return status, exchange.error(status, told)
    try:
        return status, exchange.document(said)
    except BrokenAnswerError as error:
        log.warning("an endpoint's answer could not be told in another API", reason=str(error))
        return 502, exchange.error(502, _broken(error))


def _broken(error: BrokenAnswerError) -> dict[str, Any]:
    return {"message": str(error), "type": "server_error", "param": None, "code": "endpoint_malformed"}


class _Events(WholeEvents):
    """A stream of chat completion chunks, as the events of another API. Comments stay."""

    __slots__ = ("_exchange", "_stream")

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(_LONGEST_EVENT)
        self._exchange = exchange
        self._stream = exchange.events()

    def passed(self, events: bytes) -> bytes:
        return b"".join(map(self._event, SEPARATOR.split(events)))

    def end(self) -> bytes:
        told = self._event(super().end())
        return told if self._stream.over else told + _written(self._stream.end())

    def _event(self, event: bytes) -> bytes:
        if event.startswith(b":"):
            return event
        data = event.strip()
        if not data.startswith(b"data:") or self._stream.over:
            return b""
        data = data[5:].strip()
        if data == b"[DONE]":
            return _written(self._stream.end())
        try:
            said = _decode(data)
            if not isinstance(said, dict):
                raise BrokenAnswerError("The endpoint's event is no chunk of a chat completion.")
            if (error := said.get("error")) is not None:
                return self._failed(error if isinstance(error, dict) else {"message": str(error)})
            return _written(self._stream.feed(said))
        except _UNREADABLE:
            return _written(self._stream.fail(_broken(BrokenAnswerError("The endpoint's event is no JSON."))))
        except BrokenAnswerError as broken:
            return _written(self._stream.fail(_broken(broken)))

    def _failed(self, error: dict[str, Any]) -> bytes:
        return _written(self._stream.fail(self._exchange.told(error)))


def _written(events: Iterable[ApiEvent]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (event.name.encode(), _encode(event.data)) for event in events)
