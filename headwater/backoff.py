"""How long to wait before something that failed is tried again: each time twice as long."""

import random
from dataclasses import dataclass
from typing import Final

_DOUBLED: Final = 50
"""Times; to compute more powers of two would only lead to numbers without end."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds."""

    first: float
    longest: float

    def pause(self, failures: int) -> float:
        """After so many failures in a row; the one after the first is the shortest there is."""
        return min(self.longest, self.first * 2.0 ** min(max(failures - 1, 0), _DOUBLED))

    def jittered(self, failures: int, rng: random.Random | None = None) -> float:
        """Between half of it and all: those who failed together are not to come back together."""
        return self.pause(failures) * (rng or random).uniform(0.5, 1)


RESTARTING: Final = Backoff(1.0, 60.0)
STEADY: Final = 120.0
"""Seconds of life after which the next death counts as the first."""


@dataclass(slots=True)
class Restarts:
    """Of a process that dies."""

    deaths: int = 0

    def died(self, lived: float) -> float:
        """It ended after `lived` seconds. Returns the seconds to wait before it is started again."""
        self.deaths = 1 if lived >= STEADY else self.deaths + 1
        return RESTARTING.pause(self.deaths)
