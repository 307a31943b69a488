"""Stop strings that a server leaves in its text, where clients want what comes before them."""

from typing import Any, Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.base import UnsupportedRequestError

_LONGEST: Final = 256
"""Characters. The end of a text is held back for as long as one may begin there, and looked at anew with each token."""
_decode: Final = msgspec.json.Decoder().decode


def stops_in(members: dict[str, Raw]) -> Any:
    """The member `stop`, of which a text is a list of one. Raises UnsupportedRequestError for what is too long."""
    stop = _decode(members["stop"]) if "stop" in members else []
    if isinstance(stop, str):
        stop = [stop]
    if isinstance(stop, list) and any(isinstance(each, str) and len(each) > _LONGEST for each in stop):
        raise UnsupportedRequestError("stop", f"can have {_LONGEST} characters with the server of this model")
    return stop


class StopStrings:
    """Of one answer."""

    def __init__(self, stops: Any) -> None:
        self._stops = [each for each in stops if isinstance(each, str) and each] if isinstance(stops, list) else []
        self._held: dict[int, str] = {}
        """By choice, the end of its text, with which one may begin."""
        self.found: set[int] = set()
        """Choices in whose text there was one."""

    def __bool__(self) -> bool:
        return bool(self._stops)

    def before(self, choice: int, text: str) -> str:
        """What comes before the first of them in a whole text."""
        return self.piece(choice, text) + self.rest(choice)

    def piece(self, choice: int, text: str) -> str:
        """What can be told of a choice's text, now that this has come of it."""
        if choice in self.found:
            return ""
        text = self._held.pop(choice, "") + text
        if places := [place for stop in self._stops if (place := text.find(stop)) >= 0]:
            self.found.add(choice)
            return text[: min(places)]
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held[choice] = text[-size:]
                return text[:-size]
        return text

    def rest(self, choice: int) -> str:
        """What was held back, now that no more comes."""
        return self._held.pop(choice, "")
