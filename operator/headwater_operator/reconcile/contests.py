"""Objects that somebody else changes back as often as they are written here.

Mostly it is a second operator that looks after the same namespace with other settings. Neither can know which of them
is right, so each gives way more and more, and says so: what must not happen is that both write without end.
"""

import time
from dataclasses import dataclass
from typing import Final

from headwater.backoff import Backoff

Place = tuple[str, str, str]
"""Kind, namespace and name: a UID would not do, as one may delete what the other makes."""

_BORNE: Final = 3
"""Times in a row that the same is written again at once: somebody's edit by hand is mended and no more."""
_BACKOFF: Final = Backoff(10.0, 300.0)
_FORGOTTEN: Final = 900.0
"""Seconds without a write after which it begins anew."""
_REMEMBERED: Final = 20_000


@dataclass(slots=True)
class _Written:
    what: str
    at: float
    again: int = 0
    """Times in a row that the very same had to be written once more."""


class Contests:
    def __init__(self) -> None:
        self._written: dict[Place, _Written] = {}
        self._held_back: dict[str, tuple[Place, float]] = {}

    def wait(self, place: Place, what: str, owner: str) -> bool:
        """Whether not to write `what` yet, as it was changed back too often. `owner`: who is told of it."""
        known = self._written.get(place)
        if known is None or known.what != what or known.again < _BORNE:
            return False
        left = known.at + _BACKOFF.pause(known.again - _BORNE + 1) - time.monotonic()
        if left > 0:
            self._held_back[owner] = place, left
        return left > 0

    def wrote(self, place: Place, what: str) -> None:
        now, known = time.monotonic(), self._written.pop(place, None)
        same = known is not None and known.what == what and now - known.at < _FORGOTTEN
        self._written[place] = _Written(what, now, known.again + 1 if known is not None and same else 0)
        if len(self._written) > _REMEMBERED:
            del self._written[next(iter(self._written))]

    def held_back(self, owner: str) -> tuple[str, float] | None:
        """What was not written since this was last asked, in words, and seconds until it may be."""
        found = self._held_back.pop(owner, None)
        if found is None:
            return None
        (kind, _, name), left = found
        return (
            f"{kind} {name} is changed back as often as it is written: does another operator look after this "
            "namespace, with other settings? Give each its own (--namespaces, operator.settings.namespaces)",
            left,
        )
