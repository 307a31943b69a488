"""Holds requests for a model of which nothing is ready, and sends them on once something is.

A model that was scaled to zero takes seconds to minutes to come back, and so does one whose only replica restarts. Its
clients should see a late answer, not an error. That it is asked for, the operator reads off the number of requests
that are held here, and starts a replica.

Both number and time are bounded, as is what the bodies of all of them take. A request counts for one deployment: the
one that it would go to. It is sent on as soon as any endpoint of its model is ready, though, whichever deployment that
belongs to. The first to come is the first to be sent on.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from headwater.openai.errors import APIError, ServiceUnavailableError

MOST_BYTES: Final = 256 * 2**20
"""Of the bodies of all held requests together."""
_FULL_RETRY_AFTER: Final = 5.0
_LATE_RETRY_AFTER: Final = 10.0


class Hold:
    """`check` is to be called whenever a model may have become ready, or may be gone."""

    def __init__(
        self,
        released: Callable[[str], bool],
        count: Callable[[str], None],
        *,
        limit: int,
        seconds: float,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """`released`: whether requests for a model have no more reason to wait. `limit`: of requests, for each
        deployment; 0 holds none. `count` is told how each wait ended: sent, late, full, left or draining.
        """
        self.limit = limit
        self.seconds = seconds
        self.held: Counter[str] = Counter()
        """By deployment."""
        self._released = released
        self._count = count
        self._most_bytes = most_bytes
        self._bytes = 0
        self._draining = False
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}
        """By model, in the order in which they came."""

    async def wait(self, model: str, deployment: str, size: int, patience: float) -> None:
        """Until the model is released.

        `size`: bytes of the request's body. `patience`: seconds, `self.seconds` for a request that was not held before.
        Raises ServiceUnavailableError at once where there is no room, after a while where nothing gets ready, and when
        the router is about to end.
        """
        if self._draining:
            raise self._end("draining", _draining())
        if self.held[deployment] >= self.limit or self._bytes + size > self._most_bytes:
            raise self._end("full", _full(model, self.held[deployment]))
        waiter = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(model, {})
        waiting[waiter] = None
        self.held[deployment] += 1
        self._bytes += size
        try:
            async with asyncio.timeout(patience):
                await waiter
        except TimeoutError:
            raise self._end("late", _late(model, self.seconds)) from None
        except ServiceUnavailableError:
            self._count("draining")
            raise
        except asyncio.CancelledError:
            self._count("left")
            raise
        else:
            self._count("sent")
        finally:
            self.held[deployment] -= 1
            self._bytes -= size
            waiting.pop(waiter, None)
            if not waiting and self._waiting.get(model) is waiting:
                del self._waiting[model]

    def check(self) -> None:
        for model in [model for model in self._waiting if self._released(model)]:
            for waiter in self._waiting.pop(model):
                if not waiter.done():
                    waiter.set_result(None)

    def drain(self) -> None:
        """Another router has more time to wait than this one, which is about to end."""
        self._draining = True
        for waiting in self._waiting.values():
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(_draining())

    def _end(self, outcome: str, error: APIError) -> APIError:
        self._count(outcome)
        return error


def _draining() -> ServiceUnavailableError:
    return ServiceUnavailableError("The router is about to end.", code="draining", retry_after=1)


def _full(model: str, held: int) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"No endpoint of the model `{model}` is ready, and {held} requests wait for one already.",
        code="hold_full",
        retry_after=_FULL_RETRY_AFTER,
    )


def _late(model: str, seconds: float) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"No endpoint of the model `{model}` got ready within {seconds:g} seconds.",
        code="no_endpoint_ready",
        retry_after=_LATE_RETRY_AFTER,
    )
