"""The Lease, held from a thread and a loop of its own: no work, however long it computes, keeps it from being renewed.

Whoever acts hears of its loss in its own loop. An operator that does not, as it computes, is ended by this thread
before another one may begin.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType

import structlog

from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.lease import LeaseHolder, LeaseLostError
from headwater_operator.racing import first

log = structlog.get_logger(__name__)

LEASE_LOST = 3
"""Exit status of an operator that may not act any more."""


class LeaseThread:
    """Use as an asynchronous context manager, which gives the Lease back once all work within has ended."""

    def __init__(
        self, connect: Callable[[], Cluster], candidate: Callable[[Cluster], LeaseHolder], *, grace: float
    ) -> None:
        """`connect`: to the API server, from the loop that it is called in. `grace`: seconds that whoever acts gets to
        end, once the Lease is lost."""
        self._connect = connect
        self._candidate = candidate
        self._grace = grace
        self._own = asyncio.new_event_loop()
        self._asked_to_end = asyncio.Event()
        self._ended = threading.Event()
        """Nobody acts any more."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    async def __aenter__(self) -> "LeaseThread":
        self._loop = asyncio.get_running_loop()
        self._acquired: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with contextlib.suppress(RuntimeError):  # its loop has ended by itself
            self._own.call_soon_threadsafe(self._asked_to_end.set)
        await asyncio.to_thread(self._thread.join)

    async def acquired(self) -> None:
        """Wait until it is ours. Raises what ended the thread."""
        await asyncio.shield(self._acquired)

    async def lost(self) -> None:
        """Wait for ever. Raises LeaseLostError, or what else ended the thread."""
        await asyncio.shield(self._lost)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._own) as runner:
            try:
                runner.run(self._hold())
            except Exception as error:
                self._tell(error)
                if not self._ended.wait(self._grace):
                    log.error("ending at once: the Lease is lost, and work does not end", reason=str(error))
                    os._exit(LEASE_LOST)

    async def _hold(self) -> None:
        async with self._connect() as cluster:
            lease = self._candidate(cluster)
            if not await first(lease.acquire(), self._asked_to_end.wait()):
                return
            self._loop.call_soon_threadsafe(_settle, self._acquired, None)
            await first(lease.keep(), self._asked_to_end.wait())
            await lease.release()

    def _tell(self, error: Exception) -> None:
        if not isinstance(error, LeaseLostError):
            log.error("the thread that holds the Lease has ended", reason=repr(error))
        for future in (self._acquired, self._lost):
            self._loop.call_soon_threadsafe(_settle, future, error)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # whoever waits for it is told; that nobody does is no fault
