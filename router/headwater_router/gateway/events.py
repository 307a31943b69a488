"""Reads a stream of server-sent events as it passes by: did it come to its end, did it tell of an error, what did it
use; and takes the event out that only we asked for.

Nothing is parsed. What is looked for cannot stand in the text of an answer: within JSON's strings a quote has a
backslash before it, and no line ends.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from headwater.http.whole_events import SEPARATOR, WholeEvents
from headwater_router.gateway.translating import StreamRewriter
from headwater_router.gateway.usage import SEAM, Usage, UsageFinder

_AT_ONCE: Final = 4096
"""Bytes that are looked at together: to look for a word in a short piece costs the same again for the call alone."""
_LAST_OF_DATA: Final = (b"\ndata:", b"\ndata: ")
_LAST_OF_EVENTS: Final = (b"\nevent:", b"\nevent: ", b'"type":"', b'"type": "', b'"type" :"', b'"type" : "')


class _Last(NamedTuple):
    """What nothing comes behind."""

    word: bytes
    there: re.Pattern[bytes]
    """Finds it where it stands for itself. It begins with the word, for which expressions look quickly."""


def _last(word: bytes, before: tuple[bytes, ...]) -> _Last:
    """`before`: of which one stands right before it."""
    told = b"|".join(b"(?<=%b)" % re.escape(each + word) for each in before)
    return _Last(word, re.compile(b"%b(?:%b)" % (re.escape(word), told)))


_DONE: Final = (_last(b"[DONE]", _LAST_OF_DATA),)
_ENDS: Final[Mapping[str, tuple[_Last, ...]]] = {
    "/v1/chat/completions": _DONE,
    "/v1/completions": _DONE,
    "/v1/responses": tuple(
        _last(word, _LAST_OF_EVENTS) for word in (b"response.completed", b"response.incomplete", b"response.failed")
    ),
    "/v1/messages": (_last(b"message_stop", _LAST_OF_EVENTS),),
}
"""Paths whose streams say themselves that they are whole."""
_FINISHES: Final = (b'reason":"', b'reason": "')
"""Of which one stands in a choice that says why it finished, which is an end, too."""
_FINISH: Final = re.compile(rb'"finish_reason" ?: ?"')
_ERROR_LINE: Final = re.compile(
    rb'data: ?\{ ?"(?:error" ?: ?[{"]|object" ?: ?"error"|type" ?: ?"(?:error|response\.failed)")'
    rb"|event: ?(?:error|response\.failed)"
)
_FARTHEST: Final = 32
"""Bytes from the beginning of such a line to the word by which it is found, at most."""
_NO_CHOICES: Final = re.compile(rb'"choices" ?: ?\[\]')


class StreamReader:
    """Fed with a stream, piece by piece, on the path of each token. Pieces are gathered, and looked at together."""

    __slots__ = (
        "_ends",
        "_filter",
        "_finder",
        "_finished",
        "_over",
        "_pieces",
        "_rewriter",
        "_seam",
        "_size",
        "_told_error",
        "_word",
    )

    def __init__(self, path: str = "") -> None:
        """`path`: of the request."""
        self._ends = _ENDS.get(path)
        self._finder = UsageFinder()
        self._filter: UsageFilter | None = None
        self._rewriter: StreamRewriter | None = None
        self._word = b""
        self._pieces: list[bytes] = []
        self._size = 0
        """Of these, in bytes."""
        self._seam = b"\n"
        """What is to be looked at once more with them. A stream begins where a line does."""
        self._finished = self._over = False
        self._told_error = False

    def hide_usage(self) -> None:
        """From now on the event with nothing but the usage is for us alone."""
        self._filter = UsageFilter()

    def rewrite(self, rewrite: Callable[[bytes], bytes], word: bytes = b"") -> None:
        """Whole events, from now on, and before anything else is looked for in them. In one way only.

        `word`: stands in each that becomes another.
        """
        assert self._rewriter is None
        self._rewriter, self._word = StreamRewriter(rewrite), word

    def feed(self, piece: bytes) -> bytes:
        """What the client gets of it now."""
        # Most pieces are whole events, in which nothing is to change, behind other whole ones.
        whole = piece[-2:] == b"\n\n"
        if (rewriter := self._rewriter) is not None and (not whole or piece.find(self._word) >= 0 or rewriter.rest):
            piece = rewriter.feed(piece)
            whole = piece[-2:] == b"\n\n"
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _AT_ONCE:
            self._look()
        # Most pieces are whole events with choices, which the filter need not see. `find`: where it gets bytes, `in`
        # takes them for a number first and fails, which costs more than the search.
        if (usage := self._filter) is None or (whole and piece.find(b"[]") < 0 and not usage.rest):
            return piece
        return usage.feed(piece)

    def end(self) -> bytes:
        """Nothing more comes: what was held back."""
        rest = b""
        if self._rewriter is not None:
            rewriter, self._rewriter = self._rewriter, None
            rest = self.feed(rewriter.end())
        return rest if self._filter is None else rest + self._filter.end()

    @property
    def over(self) -> bool:
        """It said itself that nothing more comes."""
        self._look()
        return self._over

    @property
    def lacks_end(self) -> bool:
        """Streams of its path say that they are over; it did not, nor why it finished, which is enough for some."""
        return self._ends is not None and not self.over and not self._finished

    @property
    def told_error(self) -> bool:
        self._look()
        return self._told_error

    @property
    def usage(self) -> Usage | None:
        self._look()
        return self._finder.usage

    def _look(self) -> None:
        if not self._pieces:
            return
        piece = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        seen = self._seam + piece
        self._seam = seen[-SEAM:]
        self._finder.look(seen, piece)
        if not self._over and self._ends is not None:
            # To look for words takes a tenth of what an expression takes that finds nothing.
            for word, there in self._ends:
                if (place := seen.find(word)) >= 0 and there.search(seen, place) is not None:
                    self._over = True
            if self._ends is _DONE and not self._finished and any(seen.find(word) >= 0 for word in _FINISHES):
                self._finished = _FINISH.search(seen) is not None
        self._told_error = self._told_error or _tells_error(seen, b"error") or _tells_error(seen, b"response.failed")


def _tells_error(seen: bytes, word: bytes) -> bool:
    """Whether a line that begins here is of an error event, of which it has the word."""
    place = seen.find(word)
    while place >= 0:
        line = seen.rfind(b"\n", max(0, place - _FARTHEST), place)
        if line >= 0 and _ERROR_LINE.match(seen, line + 1):
            return True
        place = seen.find(word, place + len(word))
    return False


class UsageFilter(WholeEvents):
    """Takes the event out that has no choices but the usage, where the client did not ask for it."""

    __slots__ = ()

    def passed(self, events: bytes) -> bytes:
        if b'"usage"' not in events:
            return events
        return b"".join(event for event in SEPARATOR.split(events) if not _is_usage_alone(event))


def _is_usage_alone(event: bytes) -> bool:
    return b'"usage"' in event and _NO_CHOICES.search(event) is not None
