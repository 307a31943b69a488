"""Ends a text at the first of some strings, which may come in pieces and is not part of the answer, unless asked for.

First is what is complete first, as a reader of single characters finds it: so the end does not depend on the pieces.
"""

from collections.abc import Sequence

from headwater_engine.formats.text import overlap


class StopStrings:
    """Holds back what may yet turn out to be the beginning of a stop string, and no more."""

    def __init__(self, stops: Sequence[str], *, show: bool = False) -> None:
        """`show`: the one that is found is part of the answer."""
        self._stops = stops
        self._show = show
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that can be shown, and the stop string that was found; nothing is shown behind it."""
        if not self._stops:
            return text, None
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda each: (each[0] + len(each[1]), each[0]))
            self._held = ""
            return text[: at + len(stop) if self._show else at], stop
        keep = max(overlap(text, 0, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held
