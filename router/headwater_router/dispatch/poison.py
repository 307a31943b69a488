"""Bodies that engines died of, so that nobody's retry carries one from engine to engine.

A request is lost at two engines, and no other was lost at both: it is to blame. Where several were lost at the same
two, one of them is, and each is only suspected; who is there at a second such pair is to blame, too. Blame ends after a
while.
"""

from collections import OrderedDict
from typing import Final

from xxhash import xxh3_128_digest

QUARANTINE: Final = 300.0
"""Seconds."""
_MOST: Final = 4096
"""Pairs of deaths that are remembered."""

Lives = frozenset[str]
"""Ids of the two engines' lives."""


class Poison:
    def __init__(self) -> None:
        self._deaths: OrderedDict[Lives, tuple[float, set[bytes]]] = OrderedDict()
        """When they were, and the fingerprints of the bodies that were lost at both; the oldest first."""

    def __len__(self) -> int:
        return len(self._deaths)

    def lost_at_both(self, path: str, body: bytes, lives: Lives, now: float) -> None:
        self._forget_old(now)
        _, bodies = self._deaths.setdefault(lives, (now, set()))
        bodies.add(_fingerprint(path, body))
        if len(self._deaths) > _MOST:
            self._deaths.popitem(last=False)

    def to_blame(self, path: str, body: bytes, now: float) -> bool:
        if not self._deaths:
            return False
        self._forget_old(now)
        fingerprint = _fingerprint(path, body)
        there = [bodies for _, bodies in self._deaths.values() if fingerprint in bodies]
        return len(there) > 1 or any(len(bodies) == 1 for bodies in there)

    def _forget_old(self, now: float) -> None:
        while self._deaths and next(iter(self._deaths.values()))[0] <= now - QUARANTINE:
            self._deaths.popitem(last=False)


def _fingerprint(path: str, body: bytes) -> bytes:
    return xxh3_128_digest(body, len(path))
