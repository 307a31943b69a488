"""Measures how long the loop is held up: a callback that comes late shows that something took all the time before."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

EVERY: Final = 0.01
"""Seconds between two callbacks. What holds the loop up may begin just behind one, so it reads as this much less."""
AT_REST: Final = 0.05
"""The same where the loop does nothing: a wake costs a processor that sleeps a tenth of a millisecond and more, so a
hundred times a second were a hundredth of a core, in each router and operator that nobody asks for anything."""
WINDOW: Final = 60.0
_BUSY: Final = 0.2
"""As much of the time computing is no rest: a block that must be told of is that much of an interval at least."""
_STAYS: Final = 1.0
"""Seconds without it until there is rest."""


class LoopLag:
    """Use `run` as a task.

    The clock is not the loop's, as uvloop's knows whole milliseconds only. `cpu`: seconds that the thread has computed.
    """

    def __init__(
        self,
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._window = window
        self._clock = clock
        self._cpu = cpu
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
        seen, computed = self._clock(), self._cpu()
        busy = seen
        try:
            while True:
                pause = AT_REST if seen - busy > _STAYS else EVERY
                self._due = seen + pause
                await asyncio.sleep(pause)
                before, now, cpu = seen, self._clock(), self._cpu()
                self._note(now)
                if cpu - computed > _BUSY * (now - before):
                    busy = now
                seen, computed = now, cpu
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
