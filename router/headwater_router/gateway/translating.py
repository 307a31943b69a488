"""Requests and answers of servers that speak a dialect of OpenAI's API. All others pass as they come."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from headwater.backends.dialects import Dialect, Translation, UnsupportedRequestError
from headwater.http.whole_events import SEPARATOR, WholeEvents
from headwater.openai.errors import BadRequestError

LONGEST: Final = 8 * 2**20
"""Bytes of an answer that is translated, of those that are not streamed. Longer ones pass as they come."""
LONGEST_RENAMED: Final = 2**20
"""Likewise, of those of which but a name is to be another."""
_CHAT: Final = "/v1/chat/completions"
_THOUGHT: Final = Dialect.reasoning
"""The field in which clients look for what was thought."""
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


class Renaming:
    """Of the field in which a server tells what was thought, for answers that have it. No other byte is changed."""

    __slots__ = ("_field", "_told", "word")

    def __init__(self, name: str) -> None:
        """`name`: the server's."""
        self.word = b'"%b"' % name.encode()
        """Stands in what is changed."""
        # Within a text, a quote has a backslash before it. Where there is null, or no text, nothing was thought.
        self._field = re.compile(self.word + rb'(?=\s*+:\s*+")')
        self._told = re.compile(self.word + rb'\s*+:\s*+"[^"]')

    def of(self, said: bytes) -> bytes:
        """An event, or a whole answer: as it came, unless it tells what was thought, and not in the word that clients
        know as well."""
        known = b'"%b"' % _THOUGHT.encode()
        tells = self.word in said and self._told.search(said) is not None and known not in said
        return self._field.sub(known, said) if tells else said

    def of_events(self, events: bytes) -> bytes:
        return b"".join(map(self.of, SEPARATOR.split(events))) if self.word in events else events


def renaming_of(dialect: Dialect | None, path: str) -> Renaming | None:
    """None: what is thought has the name that clients know."""
    return _renaming(dialect.reasoning) if dialect is not None and path == _CHAT else None


@cache
def _renaming(name: str) -> Renaming | None:
    return Renaming(name) if name != _THOUGHT else None


class StreamRewriter(WholeEvents):
    """Of whole events, and of what comes behind them in the end."""

    __slots__ = ("_rewrite",)

    def __init__(self, rewrite: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._rewrite = rewrite

    def passed(self, events: bytes) -> bytes:
        return self._rewrite(events)

    def end(self) -> bytes:
        return self._rewrite(super().end())


def translated_events(translation: Translation, events: bytes) -> bytes:
    return b"".join(_event(translation, each) for each in SEPARATOR.split(events))


def _event(translation: Translation, event: bytes) -> bytes:
    data = event.strip()
    if not data.startswith(b"data:"):
        return event
    data = data[5:].strip()
    if data == b"[DONE]":
        return _written(translation.end()) + event
    try:
        said = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return event
    return _written(translation.event(said)) if isinstance(said, dict) else event


def _written(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(b"data: %b\n\n" % _encode(event) for event in events)
