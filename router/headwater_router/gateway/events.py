"""Reads a stream of server-sent events as it passes by: did it come to its end, did it tell of an error, what did it
use; and takes the event out that only we asked for.

Nothing is parsed. What is looked for cannot stand in the text of an answer: within JSON's strings a quote has a
backslash before it, and no line ends.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from headwater.http.whole_events import SEPARATOR, WholeEvents
from headwater_router.gateway.translating import StreamRewriter
from headwater_router.gateway.usage import SEAM, Usage, UsageFinder

_AT_ONCE: Final = 4096
"""Bytes that are looked at together: to look for a word in a short piece costs the same again for the call alone."""


class _End(NamedTuple):
    """What nothing comes behind."""

    words: tuple[bytes, ...]
    """It has one of these."""
    told: tuple[re.Pattern[bytes], ...]
    """So it is told. Each begins with what expressions look for as quickly as bytes do."""


def _end_of_events(*words: bytes) -> _End:
    any_of_them = b"|".join(map(re.escape, words))
    event, kind = rb"\nevent: ?(?:%b)" % any_of_them, rb'"type" ?: ?"(?:%b)' % any_of_them
    return _End(words, (re.compile(event), re.compile(kind)))


_DONE: Final = _End((b"[DONE]",), (re.compile(rb"\ndata: ?\[DONE\]"),))
_ENDS: Final[Mapping[str, _End]] = {
    "/v1/chat/completions": _DONE,
    "/v1/completions": _DONE,
    "/v1/responses": _end_of_events(b"response.completed", b"response.incomplete", b"response.failed"),
    "/v1/messages": _end_of_events(b"message_stop"),
}
"""Paths whose streams say themselves that they are whole."""
_FINISHES: Final = (b'reason":"', b'reason": "')
"""Of which one stands in a choice that says why it finished, which is an end, too."""
_FINISH: Final = re.compile(rb'"finish_reason" ?: ?"')
_ERRORS: Final = (b"error", b"response.failed")
_ERROR_LINE: Final = re.compile(
    rb'\n(?:data: ?\{ ?"(?:error" ?: ?[{"]|object" ?: ?"error"|type" ?: ?"(?:error|response\.failed)")'
    rb"|event: ?(?:error|response\.failed))"
)
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
        if self._ends is not None and not self._over and _has_one(seen, self._ends.words):
            self._over = any(told.search(seen) is not None for told in self._ends.told)
        if self._ends is _DONE and not self._finished and _has_one(seen, _FINISHES):
            self._finished = _FINISH.search(seen) is not None
        if not self._told_error and _has_one(seen, _ERRORS):
            self._told_error = _ERROR_LINE.search(seen) is not None


def _has_one(seen: bytes, words: Iterable[bytes]) -> bool:
    """To look for words takes a tenth of what an expression takes that finds nothing."""
    return any(seen.find(word) >= 0 for word in words)


class UsageFilter(WholeEvents):
    """Takes the event out that has no choices but the usage, where the client did not ask for it."""

    __slots__ = ()

    def passed(self, events: bytes) -> bytes:
        if b'"usage"' not in events:
            return events
        return b"".join(event for event in SEPARATOR.split(events) if not _is_usage_alone(event))


def _is_usage_alone(event: bytes) -> bool:
    return b'"usage"' in event and _NO_CHOICES.search(event) is not None
