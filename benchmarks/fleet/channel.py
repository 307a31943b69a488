"""What routers tell one another, carried as Redis carries it: to everybody, a moment late. It may lose messages, and be
gone from some moment on."""

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from headwater_router.replicas.replica import Replica
from headwater_router.replicas.turns import GATHER, Turns

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
        self, loop: asyncio.AbstractEventLoop, replicas: Mapping[Replica, Turns], link: Link, rng: random.Random
    ) -> None:
        self._loop = loop
        self._replicas = replicas
        self._link = link
        self._rng = rng

    async def run(self) -> None:
        """Until it is gone, or cancelled."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._link.gone_at), asyncio.TaskGroup() as group:
                for place, (replica, turns) in enumerate(self._replicas.items()):
                    replica.joined(self._loop.time())
                    group.create_task(self._talk(replica, turns, GATHER * place / len(self._replicas)))
        for replica in self._replicas:
            replica.left()

    async def _talk(self, speaker: Replica, turns: Turns, after: float) -> None:
        await asyncio.sleep(after)
        while True:
            outgoing = speaker.outgoing(self._loop.time())
            if outgoing is not None:
                for replica in self._replicas:
                    if replica is not speaker and self._rng.random() >= self._link.loss:
                        self._loop.call_later(_WAY, self._hear, replica, outgoing.data)
            await turns.next(outgoing is not None)

    def _hear(self, replica: Replica, data: bytes) -> None:
        if self._loop.time() < self._link.gone_at:
            for _ in replica.incoming(data, self._loop.time()):
                pass
