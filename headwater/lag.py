"""Measures how long the loop is held up: a callback that comes late shows that something took all the time before."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

EVERY: Final = 0.01
"""Seconds between two callbacks. What holds the loop up may begin just behind one, so it reads as this much less."""
WINDOW: Final = 60.0


class LoopLag:
    """Use `run` as a task.

    The clock is not the loop's, as uvloop's knows whole milliseconds only.
    """

    def __init__(self, window: float = WINDOW, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window
        self._clock = clock
        self._due = float("inf")
        self._late: deque[tuple[float, float]] = deque()
        """When, and by how much: within the window, and each more than all that came after it."""

    @property
    def longest(self) -> float:
        """Seconds; the longest within the window until now. Whoever reads it changes nothing for others."""
        now = self._clock()
        self._forget(now)
        overdue = max(now - self._due, 0.0)  # what reads this may have its turn before `run` has
        return max(overdue, self._late[0][1]) if self._late else overdue

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._due = self._clock() + EVERY
                await asyncio.sleep(EVERY)
                self._note(self._clock())
        finally:
            self._due = float("inf")

    def _note(self, now: float) -> None:
        late = now - self._due
        while self._late and self._late[-1][1] <= late:
            self._late.pop()
        self._late.append((now, late))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._late and self._late[0][0] < now - self._window:
            self._late.popleft()
