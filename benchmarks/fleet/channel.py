"""What routers tell one another, carried as Redis carries it: to everybody, a moment late. It may lose messages, and be
gone from some moment on."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headwater_router.replicas.replica import Replica

_GATHER: Final = 0.02
"""Seconds in which a router gathers what it says next, as in `replicas.sharing`."""
_WAY: Final = 0.002
"""Seconds from one router through Redis to another one."""


@dataclass(frozen=True, slots=True)
class Link:
    loss: float = 0.0
    """Share of the messages that do not come, for each receiver by itself."""
    gone_at: float = float("inf")
    """Seconds from when on there is none."""


class Channel:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, replicas: Sequence[Replica], link: Link, rng: random.Random
    ) -> None:
        self._loop = loop
        self._replicas = replicas
        self._link = link
        self._rng = rng

    async def run(self) -> None:
        """Until it is gone, or cancelled."""
        for place, replica in enumerate(self._replicas):
            replica.joined(self._loop.time())
            self._loop.call_later(_GATHER * place / len(self._replicas), self._speak, replica)
        if self._link.gone_at < float("inf"):
            await asyncio.sleep(self._link.gone_at)
            for replica in self._replicas:
                replica.left()

    def _speak(self, speaker: Replica) -> None:
        now = self._loop.time()
        if now >= self._link.gone_at:
            return
        if (outgoing := speaker.outgoing(now)) is not None:
            for replica in self._replicas:
                if replica is not speaker and self._rng.random() >= self._link.loss:
                    self._loop.call_later(_WAY, self._hear, replica, outgoing.data)
        self._loop.call_later(_GATHER, self._speak, speaker)

    def _hear(self, replica: Replica, data: bytes) -> None:
        if self._loop.time() < self._link.gone_at:
            for _ in replica.incoming(data, self._loop.time()):
                pass
