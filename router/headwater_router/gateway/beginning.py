"""What an answer begins with: only an answer that says something is one.

Servers say much before the first token: comments, blank lines, a chunk that names the role, `response.created`. None of
it shows that a prompt was computed. And some say with status 200 that there was an error, or send a page for people, or
nothing: an endpoint that does so at once must not look quick.
"""

import re
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

_decode: Final = msgspec.json.Decoder().decode
_LONGEST: Final = 64 * 1024
"""Bytes before the first content that are looked at; more than that is content, whatever it says."""
_SPOKEN: Final = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call", "audio")
_SILENT: Final = frozenset(
    ("response.created", "response.queued", "response.in_progress", "response.output_item.added",
     "response.content_part.added", "response.reasoning_part.added", "message_start", "content_block_start", "ping")
)  # fmt: skip
"""Events of the responses and messages APIs that say that there will be something."""
_ERRORS: Final = frozenset(("error", "response.failed"))
_ENDS: Final = frozenset(("response.completed", "response.incomplete", "message_stop"))
_ERROR_DOCUMENT: Final = re.compile(rb'\s*+\{\s*+"(?:error"\s*+:\s*+[{"]|object"\s*+:\s*+"error")')
_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\{')
_EVIDENCE: Final = {
    "/v1/chat/completions": _CHOICES,
    "/v1/completions": _CHOICES,
    "/v1/responses": re.compile(rb'"(?:output|status)"\s*:'),
    "/v1/messages": re.compile(rb'"content"\s*:\s*\['),
}
"""What there is in any answer that is not streamed, by path."""


class Kind(Enum):
    NOTHING = "nothing"
    """There will be something, or it is only being kept alive."""
    CONTENT = "content"
    END = "end"
    """The answer is over, and without a word."""
    ERROR = "error"


class Fault(NamedTuple):
    """Why something with status 200 is no answer."""

    reason: str
    status: int | None = None
    """That it should have had, if it says so."""
    tells_error: bool = False
    said: Any = None
    """The error, where it could be read."""


_SILENCE: Final = Fault("a stream without content")
_SILENCE_OF_API: Final = Fault(_SILENCE.reason, 502, True, "The endpoint sent a stream without content.")


class Beginning:
    """Fed with the pieces of a stream until one of them is not `NOTHING`."""

    __slots__ = ("_line", "_named_error", "_size", "_strict", "fault")

    def __init__(self, path: str = "") -> None:
        """`path`: of the request. Where streams have the form of one of the known APIs, nothing else is content."""
        self._strict = path in _EVIDENCE
        self._line = bytearray()
        self._size = 0
        self._named_error = False
        """The name of the event that is being read says that it is an error; what it says comes behind."""
        self.fault = _SILENCE_OF_API if self._strict else _SILENCE
        """Where there is no content: why."""

    def feed(self, piece: bytes) -> Kind:
        self._size += len(piece)
        if self._size > _LONGEST:
            return Kind.CONTENT
        line = self._line
        line += piece
        if b"\n" not in piece:
            return Kind.NOTHING
        *lines, rest = bytes(line).split(b"\n")
        self._line = bytearray(rest)
        for each in lines:
            if (kind := self._kind_of_line(each.rstrip(b"\r"))) is not Kind.NOTHING:
                return kind
        return Kind.NOTHING

    def _kind_of_line(self, line: bytes) -> Kind:
        if line.startswith(b"event:") and line[6:].strip() == b"error":
            self._named_error = True
            return Kind.NOTHING
        if self._named_error and not line:
            return self._error(None)
        if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
            return Kind.NOTHING
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            event = None
        if self._named_error:
            return self._error(
                event.get("error") or event if isinstance(event, dict) else data.decode(errors="replace")
            )
        if not isinstance(event, dict):
            return Kind.NOTHING if self._strict else Kind.CONTENT  # A server with a format of its own.
        return self._kind(event)

    def _kind(self, event: dict[str, Any]) -> Kind:
        kind = event.get("type")
        kind = kind if isinstance(kind, str) else None
        if event.get("error") or event.get("object") == "error" or kind in _ERRORS:
            return self._error(event.get("error") or event)
        if isinstance(choices := event.get("choices"), list):
            if any(map(_speaks, choices)):
                return Kind.CONTENT
            return Kind.END if any(map(_ends, choices)) else Kind.NOTHING
        if kind in _ENDS:
            return Kind.END
        return Kind.NOTHING if kind in _SILENT else Kind.CONTENT

    def _error(self, said: Any) -> Kind:
        self.fault = Fault("an error event", _status(said), True, said)
        return Kind.ERROR


def fault_of(path: str, first: bytes, *, whole: bool) -> Fault | None:
    """Why an answer with status 200, not streamed, is none; None where it is one, as far as can be seen.

    `path`: of the request. `first`: what has come of it; `whole`: that is all.
    """
    if _ERROR_DOCUMENT.match(first):
        # What is not here at once is long, and no more than that it is an error will be known of it.
        return _error_in(first) if whole else Fault("an error with status 200", tells_error=True)
    evidence = _EVIDENCE.get(path)
    if evidence is None:
        return None
    if not first:
        return Fault("an empty answer")
    if not first.lstrip().startswith(b"{"):
        return Fault("an answer that is no JSON")
    return Fault("an answer that says nothing") if whole and evidence.search(first) is None else None


def _speaks(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return True
    delta = choice.get("delta")
    if isinstance(delta, dict) and any(delta.get(name) for name in _SPOKEN):
        return True
    return bool(choice.get("text") or choice.get("message"))


def _ends(choice: Any) -> bool:
    return isinstance(choice, dict) and bool(choice.get("finish_reason"))


def _error_in(document: bytes) -> Fault:
    try:
        found = _decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    said = (found.get("error") or found) if isinstance(found, dict) else None
    return Fault("an error with status 200", _status(said), True, said)


def _status(error: Any) -> int | None:
    """The HTTP status that an error stands for, if it says so."""
    if isinstance(error, dict):
        for name in ("http_status_code", "code", "status"):
            status = error.get(name)
            if isinstance(status, str) and status.isdecimal():
                status = int(status[:4])
            if type(status) is int and 400 <= status < 600:
                return status
        if error.get("type") == "overloaded_error":  # Anthropic's.
            return 429
    return None
