"""Measures how long the loop is held up: a callback that comes late shows that something took all the time before."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

EVERY: Final = 0.01
"""Seconds between two callbacks. What holds the loop up may begin just behind one, so it reads as this much less."""
AT_REST: Final = 0.05
"""The same where the loop has time to sleep: a wake costs a processor that sleeps a tenth of a millisecond and more, so
a hundred times a second were one to three hundredths of a core, in each router and operator: for a router that passes
tokens on, a tenth of what it does."""
WINDOW: Final = 60.0
_BUSY: Final = 0.5
"""As much of the time computing is no rest."""
_JUDGED: Final = 1.0
"""Seconds after which there is rest, where it was less."""


class _Longest:
    """The longest of the durations that were noted within a window until now."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._kept: deque[tuple[float, float]] = deque()
        """When, and how long: each longer than all that came after it."""

    def note(self, now: float, duration: float) -> None:
        while self._kept and self._kept[-1][1] <= duration:
            self._kept.pop()
        self._kept.append((now, duration))
        self.at(now)

    def at(self, now: float) -> float:
        while self._kept and self._kept[0][0] < now - self._window:
            self._kept.popleft()
        return self._kept[0][1] if self._kept else 0.0


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
        self._clock = clock
        self._cpu = cpu
        self._due = float("inf")
        self._late, self._computed = _Longest(window), _Longest(window)

    @property
    def longest(self) -> float:
        """Seconds; the longest within the window until now. Whoever reads it changes nothing for others."""
        now = self._clock()
        overdue = max(now - self._due, 0.0)  # what reads this may have its turn before `run` has
        return max(overdue, self._late.at(now))

    @property
    def computed(self) -> float:
        """Seconds of CPU time between two callbacks, the longest within the window.

        What holds the loop up by computing reads as so long, and whatever else was computed within EVERY of it. Where
        `longest` is much more, the loop had no CPU, or waited where it should not.
        """
        return self._computed.at(self._clock())

    async def run(self) -> None:
        """Until cancelled."""
        seen, cpu = self._clock(), self._cpu()
        pause, since, cpu_since = EVERY, seen, cpu
        try:
            while True:
                self._due = seen + pause
                await asyncio.sleep(pause)
                seen, cpu_before, cpu = self._clock(), cpu, self._cpu()
                self._note(seen, pause, cpu - cpu_before)
                # To rest after a second; from rest at once, or what comes would read as longer than it is.
                if pause == AT_REST or seen - since >= _JUDGED:
                    pause = EVERY if cpu - cpu_since > _BUSY * (seen - since) else AT_REST
                    since, cpu_since = seen, cpu
        finally:
            self._due = float("inf")

    def _note(self, now: float, pause: float, computed: float) -> None:
        late = now - self._due
        if late > EVERY:
            # It began up to a pause before it was due. How long before, its computing tells, if it did compute.
            late = max(late, min(computed, late + pause - EVERY))
        self._late.note(now, late)
        self._computed.note(now, computed)
