"""Routers that tell one another what they do, without a socket and without a clock."""

import random

from headwater.tally import Count
from headwater_router.index import PrefixIndex
from headwater_router.picker.base import Backlog, Others, Target
from headwater_router.picker.policies import Policies
from headwater_router.replicas.message import Ask, decode, read
from headwater_router.replicas.replica import Replica
from tests.router.indexing import exhaust

ENGINES = ["a", "b", "c"]
STEP = 0.02


class Router:
    """A replica with its own view of the engines, and every message that it has sent."""

    def __init__(self, name: str) -> None:
        self.index = PrefixIndex()
        self.policies = Policies("prefix", self.index, random.Random(1))
        self.targets = {engine: Target(f"{name}:{engine}") for engine in ENGINES}
        self.counts = {outcome: Count() for outcome in ("dropped", "received", "unknown")}
        self.malformed = Count()
        self.replica = Replica(name, self.targets.items, self.policies, self.counts, self.malformed)
        self.sent: list[bytes] = []

    def others(self, engine: str) -> Others | None:
        """Without their backlog."""
        others = self.targets[engine].load.others
        return others and others._replace(backlog=None)

    def backlog(self, engine: str) -> Backlog:
        """Of the others."""
        others = self.targets[engine].load.others
        assert others is not None
        assert others.backlog is not None
        return others.backlog

    def answered(self, engine: str, chain: list[int]) -> None:
        target = self.targets[engine].id
        self.index.answered(target, chain, self.index.dispatched(target, chain, None, 0.0, 10_000))

    def asked(self) -> list[str]:
        return [item.of for data in self.sent for raw in decode(data).items if isinstance(item := read(raw), Ask)]


class Channel:
    """Everything that is said reaches everybody, unless it is lost."""

    def __init__(self, *routers: Router) -> None:
        self.now = 0.0
        self.routers: list[Router] = []
        self.lost = lambda: False
        for router in routers:
            self.join(router)

    def join(self, router: Router) -> None:
        self.routers.append(router)
        router.replica.joined(self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += STEP
            for sender in self.routers:
                outgoing = sender.replica.outgoing(self.now)
                if outgoing is None:
                    continue
                sender.sent.append(outgoing.data)
                for receiver in self.routers:
                    if not self.lost():
                        exhaust(receiver.replica.incoming(outgoing.data, self.now))
