"""How long to wait before a process that died is started again."""

from dataclasses import dataclass

FIRST = 1.0
"""Seconds before the first restart; each further one waits twice as long."""
LONGEST = 60.0
STEADY = 120.0
"""Seconds of life after which the next death counts as the first."""


@dataclass(slots=True)
class Backoff:
    deaths: int = 0

    def died(self, lived: float) -> float:
        """A process ended after `lived` seconds. Returns the seconds to wait."""
        self.deaths = 1 if lived >= STEADY else self.deaths + 1
        return float(min(LONGEST, FIRST * 2 ** (self.deaths - 1)))
