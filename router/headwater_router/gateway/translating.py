"""Requests and answers of servers that speak a dialect of OpenAI's API. All others pass as they come."""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from headwater.backends.dialects import Dialect, Translation, UnsupportedRequestError
from headwater.openai.errors import BadRequestError

LONGEST: Final = 8 * 2**20
"""Bytes of an answer that is translated, of those that are not streamed. Longer ones pass as they come."""
_LONGEST_EVENT: Final = 2**20
_BOUNDARY: Final = (b"\n\n", b"\r\n\r\n")
_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


class Translated(NamedTuple):
    """A request in a dialect."""

    body: bytes
    translation: Translation
    """Of its answer."""


def translated(dialect: Dialect, path: str, body: bytes, model: str, request_id: str) -> Translated | None:
    """None: it goes as it came, which is for the server to judge. `model`: that the client asked for. Raises
    BadRequestError for what the server cannot do."""
    if path not in dialect.paths:
        return None
    try:
        members = dialect.request(path, _members(body))
    except UnsupportedRequestError as error:
        raise BadRequestError(f"{error}.", param=error.param, code="not_done_here") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Translated(_encode(members), dialect.translation(path, members, model, request_id))


def translated_document(translation: Translation, body: bytes) -> bytes:
    try:
        return _encode(translation.document(_decode(body)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body


class StreamTranslator:
    """Fed with a stream, piece by piece."""

    __slots__ = ("_rest", "_translation")

    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self._rest = b""
        """Of an event that has not come whole yet."""

    def feed(self, piece: bytes) -> bytes:
        """What the client gets of it now."""
        *events, self._rest = _events(self._rest + piece)
        if len(self._rest) > _LONGEST_EVENT:
            events.append(self._rest)
            self._rest = b""
        return b"".join(map(self._event, events))

    def end(self) -> bytes:
        """Nothing more comes."""
        rest, self._rest = self._rest, b""
        return self._event(rest) if rest else b""

    def _event(self, event: bytes) -> bytes:
        data = event.strip()
        if not data.startswith(b"data:"):
            return event
        data = data[5:].strip()
        if data == b"[DONE]":
            return _written(self._translation.end()) + event
        try:
            said = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return event
        return _written(self._translation.event(said)) if isinstance(said, dict) else event


def _written(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(b"data: %b\n\n" % _encode(event) for event in events)


def _events(stream: bytes) -> list[bytes]:
    """Whole ones with what ends them, and what comes behind the last."""
    events: list[bytes] = []
    start = 0
    while True:
        ends = [(place, place + len(mark)) for mark in _BOUNDARY if (place := stream.find(mark, start)) >= 0]
        if not ends:
            return [*events, stream[start:]]
        end = min(ends)[1]
        events.append(stream[start:end])
        start = end
