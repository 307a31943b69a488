"""A text that comes in pieces, and is read as if it were there from the beginning.

A format's reader is a generator: it goes on where more has come, and yields what it has understood, or None where it
needs more. So it is written down in the order of what it reads, and what it finds cannot depend on how the text was
cut, as long as it looks at nothing but what these methods give.
"""

import re
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from headwater_engine.formats.parts import Content, Part

Result = TypeVar("Result")
Reading = Generator[Part | None, None, Result]
"""Yields parts, and None for: more text, please."""
As = Callable[[str], Part]

_SPACE: Final = " \t\r\n"
_STRUCTURE: Final = re.compile(r'["\[\]{}<`]')
_IN_STRING: Final = re.compile(r'["\\]')
_SCALAR_ENDS: Final = re.compile(r"[\s,\]}]")


class Text:
    """What has come. Readers move a place in it forward, and back to where they have put a mark."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self.ended = False
        """Whether nothing follows."""

    def add(self, text: str) -> None:
        self._forget()
        self._text += text

    def _forget(self) -> None:
        keep = self._at if self._mark is None else self._mark
        self._text = self._text[keep:]
        self._at -= keep
        self._mark = None if self._mark is None else 0

    def mark(self) -> None:
        self._mark = self._at

    def settle(self) -> None:
        """Nobody will want to go back to the mark."""
        self._mark = None

    def since_mark(self) -> str:
        """What was read since; the mark is gone."""
        assert self._mark is not None
        text, self._mark = self._text[self._mark : self._at], None
        return text

    def back(self) -> None:
        """To the mark, which is gone."""
        assert self._mark is not None
        self._at, self._mark = self._mark, None

    def rest(self) -> str:
        """Of what has come, all that is not read; then it is."""
        text, self._at = self._text[self._at :], len(self._text)
        return text

    def unread(self, text: str) -> None:
        """Which was read last."""
        self._at -= len(text)

    def peek(self, count: int) -> Reading[str]:
        """The next characters, fewer at the end; they are not read."""
        while len(self._text) - self._at < count and not self.ended:
            yield None
        return self._text[self._at : self._at + count]

    def begins(self, text: str) -> Reading[bool]:
        """Whether it goes on with `text`, which then is read."""
        while not self.ended and text.startswith(self._text[self._at : self._at + len(text)]):
            if len(self._text) - self._at >= len(text):
                break
            yield None
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def skip_space(self) -> Reading[str]:
        """Read white space, and say what follows it, one character; nothing at the end."""
        while True:
            character = yield from self.peek(1)
            if not character or character not in _SPACE:
                return character
            self._at += 1

    def pass_until(self, part: As, *markers: str) -> Reading[str | None]:
        """What comes before the first of `markers`, as parts; the marker is read, too, and said. None: the end came.

        First is what begins first; none of them may begin with another.
        """
        while True:
            found = [(at, marker) for marker in markers if (at := self._text.find(marker, self._at)) >= 0]
            end, marker = min(found) if found else (len(self._text), None)
            # A marker that begins before the one that was found may be incomplete yet.
            keep = 0 if self.ended else max(overlap(self._text, self._at, marker) for marker in markers)
            if marker is not None and len(self._text) - keep < end:
                end, marker = len(self._text), None
            stop = end if marker is not None else end - keep
            if stop > self._at:
                piece, self._at = self._text[self._at : stop], stop
                yield part(piece)
            if marker is not None:
                self._at += len(marker)
                return marker
            if self.ended:
                return None
            yield None

    def take_until(self, *markers: str) -> Reading[tuple[str, str | None]]:
        """As `pass_until`, but as one text."""
        return (yield from _taken(self.pass_until(Content, *markers)))

    def pass_value(self, part: As) -> Reading[bool]:
        """A JSON value, as parts, up to where it ends; whether it does. What is in it is not looked at."""
        value = _Value()
        while True:
            end = value.end(self._text, self._at)
            stop = len(self._text) if end is None else end
            if stop > self._at:
                piece, self._at = self._text[self._at : stop], stop
                yield part(piece)
            if end is not None or self.ended:
                return end is not None or value.is_scalar
            yield None

    def take_value(self) -> Reading[str | None]:
        """A JSON value as one text; None where it does not end."""
        value, whole = yield from _taken(self.pass_value(Content))
        return value if whole else None


def _taken(reading: Reading[Result]) -> Reading[tuple[str, Result]]:
    """What it would give as content, kept together instead."""
    pieces: list[str] = []
    while True:
        try:
            part = next(reading)
        except StopIteration as end:
            return "".join(pieces), end.value
        if isinstance(part, Content):
            pieces.append(part.text)
        else:
            yield None


class _Value:
    """Finds the end of a JSON value, of which it is shown one piece after another."""

    def __init__(self) -> None:
        self._open = 0
        self._in_string = False
        self._escaped = False
        self._begun = False
        self.is_scalar = False

    def end(self, text: str, at: int) -> int | None:
        """The place behind it; None where it is not in this piece, which is never shown again."""
        if at >= len(text):
            return None
        if not self._begun:
            self._begun = True
            self.is_scalar = text[at] not in '"[{'
        if self.is_scalar:
            found = _SCALAR_ENDS.search(text, at)
            return None if found is None else found.start()
        while at < len(text):
            if self._in_string:
                at = self._end_of_string(text, at)
            elif (found := _STRUCTURE.search(text, at)) is None:
                return None
            else:
                if found[0] in "<`":  # no JSON: the tag or the block around it ends, though this has not
                    return found.start()
                at = found.end()
                self._in_string = found[0] == '"'
                self._open += 1 if found[0] in "[{" else -1 if found[0] in "]}" else 0
            if not self._in_string and not self._open:
                return at
        return None

    def _end_of_string(self, text: str, at: int) -> int:
        """The place behind it, or of the end of the piece."""
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        self._escaped = found[0] == "\\"
        self._in_string = self._escaped
        return found.end()


def overlap(text: str, at: int, marker: str) -> int:
    """Length of the longest end of `text`, behind `at`, that `marker` begins with, but is longer than."""
    for length in range(min(len(text) - at, len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
