"""Requests and answers of servers that speak a dialect of OpenAI's API. All others pass as they come."""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from headwater.backends.dialects import Dialect, Translation, UnsupportedRequestError
from headwater.http.whole_events import SEPARATOR, WholeEvents
from headwater.openai.errors import BadRequestError

LONGEST: Final = 8 * 2**20
"""Bytes of an answer that is translated, of those that are not streamed. Longer ones pass as they come."""
_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


class Translated(NamedTuple):
    """A request in a dialect."""

    body: bytes
    translation: Translation | None
    """Of its answer; None: that needs none."""


def translated(dialect: Dialect, path: str, body: bytes, model: str, request_id: str) -> Translated | None:
    """None: it goes as it came, which is for the server to judge. `model`: that the client asked for. Raises
    BadRequestError for what the server cannot do."""
    if path not in dialect.paths:
        return None
    try:
        given = _members(body)
        members = dialect.request(path, given)
    except UnsupportedRequestError as error:
        message = f"{error}; it is {dialect.server}."
        raise BadRequestError(message, param=error.param, code="not_done_here") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # What it takes as it is keeps its bytes.
    written = body if members == given else _encode(members)
    return Translated(written, dialect.translation(path, members, model, request_id))


def translated_document(translation: Translation, body: bytes) -> bytes:
    try:
        return _encode(translation.document(_decode(body)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body


class StreamTranslator(WholeEvents):
    __slots__ = ("_translation",)

    def __init__(self, translation: Translation) -> None:
        super().__init__()
        self._translation = translation

    def passed(self, events: bytes) -> bytes:
        return b"".join(map(self._event, SEPARATOR.split(events)))

    def end(self) -> bytes:
        return self._event(super().end())

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
