"""An event loop whose time is a number: instead of waiting for the next timer, it is there.

So the router's own code, which waits, times out and retries by asyncio, runs as it is, hundreds of times faster than in
real time, and always the same.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Jump(selectors.SelectSelector):
    """Asked to wait for so long, it moves the time on by that. No socket is ever ready: there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._jump.now


def run(main: Coroutine[Any, Any, None], loop: VirtualLoop) -> None:
    """To its end, which takes what it computes and not what it waits for."""
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()
