"""When a router tells the others what it has to say."""

import asyncio
from typing import Final

GATHER: Final = 0.02
"""Seconds in which what there is to say comes together for one message, where there is much."""
AT_ONCE: Final = 10
"""Messages that may be sent without waiting for one another, where there was less to say before."""


class Turns:
    """What happens to a request, that it is sent somewhere or that its answer begins, is told at once, as long as that
    is no more often than once in `GATHER` seconds on average. So two routers send to the same idle engine only in the
    moment that a message takes."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()
        self._due = float("-inf")
        """When the next message would come, if all that were sent had waited for one another."""

    def happened(self) -> None:
        """There is something that others should know. On the token path."""
        self._happened.set()

    async def next(self, spoke: bool) -> None:
        """Until the next turn. `spoke`: whether there was anything to say in the last one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if spoke:
            self._due = max(self._due, now) + GATHER
        if (early := self._due - AT_ONCE * GATHER - now) > 0:
            await asyncio.sleep(early)
        else:
            # A timer of our own: a cancellation must not meet that of a timeout, where one of the two could be lost.
            timer = loop.call_later(GATHER, self._happened.set)
            try:
                await self._happened.wait()
            finally:
                timer.cancel()
        self._happened.clear()
