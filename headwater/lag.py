"""Measures how long the loop is held up: a callback that comes late shows that something took all the time before."""

import asyncio
from typing import Final

_EVERY: Final = 0.1


class LoopLag:
    """Use `run` as a task."""

    def __init__(self) -> None:
        self._longest = 0.0

    def take(self) -> float:
        """Seconds; the longest since this was last called."""
        longest, self._longest = self._longest, 0.0
        return longest

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY
            await asyncio.sleep(_EVERY)
            self._longest = max(self._longest, loop.time() - due)
