"""The keys that wait to be reconciled: each at most once, and none by two workers at the same time.

Namespaces take turns, so that none waits behind the thousand of another.

A key that is added while a worker has it is handed out again afterwards, so nothing that happened meanwhile is missed.
"""

import asyncio
import time
from collections import deque
from typing import Final

from headwater.backoff import Backoff
from headwater_operator.cluster.kinds import Key

_BACKOFF: Final = Backoff(0.5, 60.0)


class _Turns(asyncio.Queue[Key]):
    """Hands out a key of each namespace in turn, of one namespace in the order in which they came."""

    def _init(self, maxsize: int) -> None:
        self._queue: dict[str, deque[Key]] = {}
        """The namespace whose turn is next comes first; none is empty."""

    def _put(self, key: Key) -> None:
        self._queue.setdefault(key.namespace, deque()).append(key)

    def _get(self) -> Key:
        namespace = next(iter(self._queue))
        keys = self._queue.pop(namespace)
        key = keys.popleft()
        if keys:
            self._queue[namespace] = keys
        return key


class WorkQueue:
    """All times are seconds of the running loop's clock."""

    def __init__(self) -> None:
        self._ready = _Turns()
        self._waiting: dict[Key, float] = {}
        """In `_ready`, and since when, the oldest first."""
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        """Added while active."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> float:
        """Seconds that the one has waited which waits longest; 0 where none does."""
        return time.monotonic() - next(iter(self._waiting.values())) if self._waiting else 0.0

    def failures(self, key: Key) -> int:
        """How often in a row it has failed."""
        return self._failures.get(key, 0)

    def add(self, key: Key) -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = time.monotonic()
            self._ready.put_nowait(key)

    def add_after(self, key: Key, delay: float) -> None:
        """Add it then, unless something adds it before. Of several delays the shortest counts."""
        if key in self._waiting:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + delay:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(delay, self.add, key)

    async def get(self) -> Key:
        """The next key. Give it back with `done` or `failed`."""
        key = await self._ready.get()
        del self._waiting[key]
        self._active.add(key)
        return key

    def done(self, key: Key) -> None:
        self._failures.pop(key, None)
        self._release(key)

    def failed(self, key: Key) -> float:
        """Have it tried again, later each time. Returns in how many seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = _BACKOFF.jittered(failures)
        self._release(key)
        self.add_after(key, delay)
        return delay

    def _release(self, key: Key) -> None:
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
