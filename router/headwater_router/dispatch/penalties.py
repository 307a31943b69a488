"""What an endpoint turned down counts as load there for as long as an answer takes.

Who fails at once would look idle, and draw the traffic.
"""

import heapq
from typing import Final

from headwater_router.dispatch.durations import Durations
from headwater_router.picker.base import Target

_LONGEST: Final = 60.0


class Penalties:
    """Times are monotonic seconds."""

    def __init__(self, durations: Durations) -> None:
        self._durations = durations
        self._running: list[tuple[float, int, Target]] = []
        """A heap by when they end."""
        self._count = 0

    def put(self, target: Target, model: str, at: float) -> None:
        """It turned down a request that was sent there `at`."""
        self._count += 1
        target.load.penalty += 1
        ends = at + min(self._durations.of(model), _LONGEST)
        heapq.heappush(self._running, (ends, self._count, target))

    def settle(self, now: float) -> None:
        """Take back those whose time is over."""
        while self._running and self._running[0][0] <= now:
            heapq.heappop(self._running)[2].load.penalty -= 1
