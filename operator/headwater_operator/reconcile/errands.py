"""What pods are asked, beside the workers: one may take as long as it likes, and holds up nobody but itself.

Whoever may create a ModelDeployment chooses what runs in its pods. So no worker waits for one: an errand is begun, and
the resource is reconciled again when it has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Final
from weakref import WeakValueDictionary

import structlog

from headwater_operator.cluster.kinds import Key

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 64
"""Fewer than the connections that the client opens, so that others find one."""
_OF_A_NAMESPACE: Final = 8


class Errands:
    """Each belongs to a resource, and ends with it. `done` has that one reconciled again."""

    def __init__(self, done: Callable[[Key], None]) -> None:
        self._done = done
        self._tasks: dict[Key, dict[Hashable, asyncio.Task[None]]] = {}
        self._all = asyncio.Semaphore(_AT_ONCE)
        # Those of one namespace wait among themselves, and so few of each for a turn among all.
        self._of_namespace: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @property
    def under_way(self) -> list[asyncio.Task[None]]:
        return [task for tasks in self._tasks.values() for task in tasks.values()]

    def begin(self, key: Key, what: Hashable, work: Callable[[], Awaitable[None]]) -> None:
        """Unless it is under way."""
        if what not in (tasks := self._tasks.setdefault(key, {})):
            tasks[what] = asyncio.create_task(self._run(key, what, work))

    def stop(self, key: Key, *, but: Collection[Hashable] = ()) -> None:
        """All of a resource that are not `but`."""
        tasks = self._tasks.pop(key, {})
        for what in tasks.keys() - set(but):
            tasks.pop(what).cancel()
        if tasks:
            self._tasks[key] = tasks

    async def end(self) -> None:
        tasks = self.under_way
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: Key, what: Hashable, work: Callable[[], Awaitable[None]]) -> None:
        its = self._of_namespace.get(key.namespace)
        if its is None:
            its = self._of_namespace[key.namespace] = asyncio.Semaphore(_OF_A_NAMESPACE)
        try:
            async with its, self._all:
                await work()
        except Exception:
            log.exception("an errand failed", key=str(key))
            self._forget(key, what)  # the resource begins it again when its time comes, not at once
        else:
            self._forget(key, what)
            self._done(key)

    def _forget(self, key: Key, what: Hashable) -> None:
        """The present one. It may have been stopped in the moment in which it ended, and another have its place."""
        tasks = self._tasks.get(key, {})
        if tasks.get(what) is asyncio.current_task():
            del tasks[what]
        if not tasks:
            self._tasks.pop(key, None)
