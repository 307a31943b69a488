"""Trying again what may work in a while, as late as a busy server asks for, on as many lines as it bears."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import structlog

from headwater.backoff import Backoff
from headwater.fetch.errors import FetchError, TransientError

log = structlog.get_logger(__name__)

T = TypeVar("T")

ATTEMPTS: Final = 8
ATTEMPTS_WITHOUT_A_NAME: Final = 4
"""That is seven seconds. No name is known where there is no network, and somebody may be waiting at a terminal."""
_AT_FIRST: Final = 8
MOST: Final = 16
"""Requests at once."""
_BACKOFF: Final = Backoff(1.0, 60.0)
_LONGEST_ASKED: Final = 600.0
"""Seconds; a server that asks for more is not worth waiting for."""


class Lines:
    """The requests of a fetch. All wait where one was refused, and fewer go on then: a busy server is asked by one.

    As with TCP, each success adds a little to how many there may be at once, and each failure halves it.
    """

    def __init__(self) -> None:
        self._limit = float(_AT_FIRST)
        self._running = 0
        self._changed = asyncio.Condition()
        self._failures = 0
        """In a row, without a byte of progress between them."""
        self._round = 0
        self._pause: asyncio.Task[None] | None = None

    def progressed(self) -> None:
        self._failures = 0

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call it until it raises no TransientError. Raises FetchError after ATTEMPTS failures without progress."""
        while True:
            begun = await self._enter()
            try:
                result = await call()
            except TransientError as error:
                self._failed(error, begun)
            else:
                self._limit = min(self._limit + 1 / self._limit, MOST)
                self._failures = 0
                return result
            finally:
                await self._leave()

    async def _enter(self) -> int:
        """The round that this attempt is of."""
        while True:
            if self._pause is not None:
                await asyncio.shield(self._pause)
            async with self._changed:
                await self._changed.wait_for(lambda: self._running < int(self._limit))
                if self._pause is None or self._pause.done():
                    self._running += 1
                    return self._round

    async def _leave(self) -> None:
        async with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _failed(self, error: TransientError, begun: int) -> None:
        if begun != self._round:  # others were refused with it: that is one failure
            return
        self._round += 1
        self._failures += 1
        attempts = ATTEMPTS_WITHOUT_A_NAME if error.nameless else ATTEMPTS
        if self._failures >= attempts:
            raise FetchError(f"{error} (after {self._failures} attempts)") from error
        self._limit = max(self._limit / 2, 1.0)
        seconds = _BACKOFF.jittered(self._failures)
        if error.after is not None:
            seconds = max(seconds, min(error.after, _LONGEST_ASKED))
        tried = f"{self._failures} of {attempts}"
        log.warning("trying again", reason=str(error), tried=tried, seconds=round(seconds, 1))
        self._pause = asyncio.create_task(pause(seconds))


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def at_once(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do them all. The first that fails ends the others."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def transient(status: int) -> bool:
    """Whether an HTTP status may be another one in a while."""
    return status in (408, 425, 429) or status >= 500


def retry_after(value: str | None) -> float | None:
    """The header's seconds; it may also be a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
