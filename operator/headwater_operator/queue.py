"""The keys that wait to be looked at: each at most once, and none by two workers at the same time.

A key that is added while a worker has it is handed out again afterwards, so nothing that happened meanwhile is missed.
"""

import asyncio
import random
from dataclasses import dataclass
from typing import Final

_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 60.0


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One ModelDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class WorkQueue:
    """All times are seconds of the running loop's clock."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        """In `_ready`."""
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        """Added while active."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: Key) -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: Key, delay: float) -> None:
        """Add it then, unless something adds it before. Of several delays the shortest counts."""
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
        self._waiting.discard(key)
        self._active.add(key)
        return key

    def done(self, key: Key) -> None:
        self._failures.pop(key, None)
        self._release(key)

    def failed(self, key: Key) -> float:
        """Have it tried again, later each time. Returns in how many seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(_FIRST_DELAY * 2.0 ** min(failures - 1, 20), _LONGEST_DELAY) * random.uniform(0.8, 1.2)
        self._release(key)
        if key not in self._waiting:
            self.add_after(key, delay)
        return delay

    def _release(self, key: Key) -> None:
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
