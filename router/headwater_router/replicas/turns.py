"""When a router tells the others what it has to say."""

import asyncio
from typing import Final

GATHER: Final = 0.02
"""Seconds in which what there is to say comes together for one message."""


class Turns:
    """A request that is sent somewhere is told at once, unless something was said within the last `GATHER` seconds. So
    two routers send to the same idle engine only in the moment that a message takes, and none speaks more often than
    once in `GATHER` seconds."""

    def __init__(self) -> None:
        self._sent = asyncio.Event()

    def sent(self) -> None:
        """A request was sent to an engine. On the token path."""
        self._sent.set()

    async def next(self, spoke: bool) -> None:
        """Until the next turn. `spoke`: whether there was anything to say in the last one."""
        if spoke:
            await asyncio.sleep(GATHER)
        else:
            # A timer of our own: a cancellation must not meet that of a timeout, where one of the two could be lost.
            timer = asyncio.get_running_loop().call_later(GATHER, self._sent.set)
            try:
                await self._sent.wait()
            finally:
                timer.cancel()
        self._sent.clear()
