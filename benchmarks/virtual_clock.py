"""An event loop whose time is a number: instead of waiting for the next timer, it is there.

So code that waits, times out and retries by asyncio runs as it is, hundreds of times faster than in real time, and
always the same. The fleet's model and the operator's tests run on it.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    """Nothing comes from outside, so what the loop would wait is skipped."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("all wait for something that cannot happen any more")
        self.passed += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._jump.passed

    def hold_up(self, seconds: float) -> None:
        """As code does that takes so long and lets nobody else have a turn."""
        self._jump.passed += seconds


def run(work: Coroutine[Any, Any, T], loop: VirtualLoop | None = None) -> T:
    """To its end, which takes what it computes and not what it waits for. `loop`: one that others know already."""
    with asyncio.Runner(loop_factory=lambda: loop or VirtualLoop()) as runner:
        return runner.run(work)
