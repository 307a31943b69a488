"""Bodies that engines died of, so that nobody's retry carries one from engine to engine.

A body was lost at two engines, by one request or by several, before its first token or after, and no other was lost at
both: it is to blame. Where others were, each is only suspected, until it was lost at one more that they were not at, or
at four. A body that some engine has answered is not suspected any more. Blame ends after a while.
"""

from collections import OrderedDict
from typing import Final

from xxhash import xxh3_128_digest

QUARANTINE: Final = 300.0
"""Seconds after the last loss."""
_TOO_OFTEN: Final = 4
"""Engines: whoever was lost at so many is to blame, whatever else was."""
_MOST: Final = 4096
"""Bodies that are remembered."""


class Poison:
    """Bodies are known by their fingerprints, engines by the ids of their lives."""

    def __init__(self) -> None:
        self._losses: OrderedDict[bytes, dict[str, float]] = OrderedDict()
        """Where each body was lost, and when; the one that was lost last is the last."""

    def __len__(self) -> int:
        return len(self._losses)

    def lost(self, body: bytes, life: str, now: float) -> None:
        self._forget_old(now)
        there = self._losses.pop(body, {})
        self._losses[body] = {each: when for each, when in there.items() if when > now - QUARANTINE} | {life: now}
        if len(self._losses) > _MOST:
            self._losses.popitem(last=False)

    def answered(self, body: bytes) -> None:
        """No engine dies of this one."""
        self._losses.pop(body, None)

    def to_blame(self, body: bytes, now: float) -> bool:
        self._forget_old(now)
        lives = self._losses.get(body, {}).keys()
        if not 2 <= len(lives) < _TOO_OFTEN:
            return len(lives) >= _TOO_OFTEN
        return not any(lives <= there.keys() for other, there in self._losses.items() if other != body)

    def _forget_old(self, now: float) -> None:
        while self._losses and max(next(iter(self._losses.values())).values()) <= now - QUARANTINE:
            self._losses.popitem(last=False)


def fingerprint(path: str, body: bytes) -> bytes:
    return xxh3_128_digest(body, len(path))
