"""Finds the usage in an answer without parsing it, while it passes by."""

import re
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(rb'"\s*:\s*(\d{1,9})(?![\deE])')
"""Of tokens; what is longer, or has an exponent, is none."""
_LONGEST: Final = 2048
"""Bytes of a usage that are looked at."""
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_NAME: Final = b'"usage"'
SEAM: Final = 64
"""Bytes of a piece that are looked at once more with the next: what is looked for may be cut anywhere."""


@dataclass(slots=True, frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int | None
    """None where the engine does not say."""
    output_tokens: int | None


class UsageFinder:
    """Fed with an answer, piece by piece. The last usage counts, and of the first what the last does not say: in the
    messages API the prompt is told at the beginning, and the output at the end.

    No text can imitate one: within JSON's strings a quote has a backslash before it.
    """

    __slots__ = ("_first", "_last", "_seam")

    def __init__(self) -> None:
        self._seam = b""
        self._first = self._last = b""
        """From where its name begins; the last one may still grow."""

    def feed(self, piece: bytes) -> bytes:
        """Gives the piece back."""
        seen = self._seam + piece
        self.look(seen, piece)
        self._seam = seen[-SEAM:]
        return piece

    def look(self, seen: bytes, piece: bytes) -> None:
        """`seen`: the piece, behind what is to be looked at once more of what came before."""
        if _NAME in seen and (place := _last_place(seen, len(seen) - len(piece))) >= 0:
            if not self._first and (found := _USAGE.search(seen)) is not None:
                self._first = self._last or seen[found.start() : found.start() + _LONGEST]
            self._last = seen[place : place + _LONGEST]
        elif self._last and len(self._last) < _LONGEST:
            self._last += piece[: _LONGEST - len(self._last)]

    @property
    def usage(self) -> Usage | None:
        """None where there was none that tells of the prompt."""
        last, first = self._last, self._first
        prompt = _either(last, b'"prompt_tokens"', b'"input_tokens"')
        if prompt is None:
            prompt = _either(first, b'"prompt_tokens"', b'"input_tokens"')
        if prompt is None:
            return None
        cached = _either(last, b'"cached_tokens"', b'"cache_read_input_tokens"')
        if cached is None and first:
            cached = _either(first, b'"cached_tokens"', b'"cache_read_input_tokens"')
        return Usage(prompt, cached, _either(last, b'"completion_tokens"', b'"output_tokens"'))


def _last_place(seen: bytes, old: int) -> int:
    """Of a usage that is no null; -1 where there is none. `old`: bytes that were looked at before."""
    place = seen.rfind(_NAME)
    while place >= 0 and (found := _USAGE.match(seen, place)) is None:
        place = seen.rfind(_NAME, 0, place)
    return place if place >= 0 and found is not None and found.end() > old else -1


def _either(text: bytes, name: bytes, other: bytes) -> int | None:
    found = _number(text, name)
    return _number(text, other) if found is None else found


def _number(text: bytes, name: bytes) -> int | None:
    place = text.find(name)
    found = _NUMBER.match(text, place + len(name) - 1) if place >= 0 else None
    return int(found[1]) if found else None
