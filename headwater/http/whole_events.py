"""A stream of server-sent events, cut where an event ends, for whoever changes something in it."""

import re
from abc import ABC, abstractmethod
from typing import Final

SEPARATOR: Final = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
_LONGEST: Final = 64 * 1024
"""Bytes of an event that is held back, if nothing else is said. Of a longer one, pieces pass as they are."""


class WholeEvents(ABC):
    """Fed with a stream, piece by piece. Looks at each byte a bounded number of times, however the stream is cut."""

    __slots__ = ("_longest", "_searched", "rest")

    def __init__(self, longest: int = _LONGEST) -> None:
        """`longest`: bytes of an event that is held back."""
        self._longest = longest
        self.rest = bytearray()
        """Of events, the last of which has not come whole yet."""
        self._searched = 0
        """Bytes of it in which no event ends."""

    @abstractmethod
    def passed(self, events: bytes) -> bytes:
        """What the client gets of these, which are whole."""

    def feed(self, piece: bytes) -> bytes:
        """What the client gets of it now."""
        rest = self.rest
        rest += piece
        end = self._end_of_last(rest)
        if not end and len(rest) <= self._longest:
            self._searched = len(rest)
            return b""
        events = bytes(rest[: end or len(rest)])
        del rest[: len(events)]
        self._searched = len(rest)
        return self.passed(events)

    def end(self) -> bytes:
        """Nothing more comes: what was held back, as it is."""
        rest, self.rest, self._searched = bytes(self.rest), bytearray(), 0
        return rest

    def _end_of_last(self, rest: bytearray) -> int:
        """Where the last event ends that is whole; 0 where none is."""
        start = max(0, self._searched - 3)
        blank, carriage = rest.rfind(b"\n\n", start), rest.rfind(b"\r\n\r\n", start)
        return max(blank + 2 if blank >= 0 else 0, carriage + 4 if carriage >= 0 else 0)
