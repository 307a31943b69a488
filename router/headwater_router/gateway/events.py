"""Reads a stream of server-sent events as far as the router must: when content begins, whether it came to its end, and
which event is the one that only we asked for.

Servers say much before the first token: comments, blank lines, a chunk that names the role, `response.created`. None of
it shows that a prompt was computed. Only until the first content are events parsed; behind it a stream passes by with
two searches a piece.
"""

import re
from enum import Enum
from typing import Any, Final

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
_END: Final = re.compile(
    rb'data: ?\[DONE\]|"finish_reason" ?: ?"|"type" ?: ?"(?:response\.(?:completed|incomplete|failed)|message_stop)"'
)
_ERROR: Final = re.compile(
    rb'data: ?\{ ?"error" ?:|^event: ?error|"type" ?: ?"(?:error|response\.failed)"', re.MULTILINE
)
_NO_CHOICES: Final = re.compile(rb'"choices" ?: ?\[\]')
_SEPARATOR: Final = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")


class Kind(Enum):
    NOTHING = "nothing"
    """There will be something, or it is only being kept alive."""
    CONTENT = "content"
    """Of the answer, or its end."""
    ERROR = "error"


class Beginning:
    """Fed with the pieces of a stream until one of them is not `NOTHING`."""

    __slots__ = ("_line", "_size", "status")

    def __init__(self) -> None:
        self._line = b""
        self._size = 0
        self.status: int | None = None
        """That an error event names."""

    def feed(self, piece: bytes) -> Kind:
        self._size += len(piece)
        if self._size > _LONGEST:
            return Kind.CONTENT
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if not line or line.startswith(b":"):
                continue
            if line.startswith(b"data:") and (kind := self._kind(line[5:].strip())) is not Kind.NOTHING:
                return kind
        return Kind.NOTHING

    def _kind(self, data: bytes) -> Kind:
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Kind.CONTENT  # `[DONE]`, or a server with a format of its own.
        if not isinstance(event, dict):
            return Kind.CONTENT
        if event.get("error") or event.get("type") in ("error", "response.failed"):
            self.status = _status(event.get("error"))
            return Kind.ERROR
        if isinstance(choices := event.get("choices"), list):
            return Kind.CONTENT if any(map(_speaks, choices)) else Kind.NOTHING
        return Kind.NOTHING if event.get("type") in _SILENT else Kind.CONTENT


def _speaks(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return True
    delta = choice.get("delta")
    if isinstance(delta, dict) and any(delta.get(name) for name in _SPOKEN):
        return True
    return bool(choice.get("text") or choice.get("finish_reason") or choice.get("message"))


def _status(error: Any) -> int | None:
    """The HTTP status that an error event stands for, if it says so."""
    if isinstance(error, dict):
        for name in ("http_status_code", "code", "status"):
            if type(status := error.get(name)) is int and 400 <= status < 600:
                return status
    return None


def is_whole(tail: bytes) -> bool:
    """Whether a stream with these last bytes came to its end."""
    # The expressions take 30 and 50 us where nothing is found, which is more than all else that a stream's end takes.
    return tail.endswith(b"data: [DONE]\n\n") or _END.search(tail) is not None


def ends_in_error(tail: bytes) -> bool:
    return (b"error" in tail or b"response.failed" in tail) and _ERROR.search(tail) is not None


class UsageFilter:
    """Takes the event out that has no choices but the usage, where the client did not ask for it."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""
        """An event that has not come whole yet."""

    def feed(self, piece: bytes) -> bytes:
        """What the client gets of it now."""
        if not self._rest and b"[]" not in piece and piece.endswith(b"\n\n"):
            return piece
        *events, rest = _SEPARATOR.split(self._rest + piece)
        if len(rest) > _LONGEST:
            events, rest = [*events, rest], b""
        self._rest = rest
        return b"".join(event for event in events if not _is_usage_alone(event))

    def end(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest


def _is_usage_alone(event: bytes) -> bool:
    return b'"usage"' in event and _NO_CHOICES.search(event) is not None
