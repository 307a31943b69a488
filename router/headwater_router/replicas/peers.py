"""What other routers have said lately of themselves: what they have at which engine, and how long they have listened.

They say so every tenth of a second, and in between what has changed. Who has not for a second is not counted any more:
it has ended. Where that is so of all, the way to them is broken, and nothing is known. A router of an older release
says nothing of its load; while there is one, the sum would be too small, and the engines' gauges are the better word.
So they are where one speaks of an endpoint as a whole, and another of the data-parallel engines behind it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from headwater_router.picker.base import Backlog, Others
from headwater_router.replicas.message import MOST_ENGINES, EngineLoad, Name

_FRESH: Final = 1.0
"""Seconds for which a router's load counts."""
_SILENT: Final = 10.0
"""Seconds after which a router that says nothing at all has ended. Those of older releases speak every five."""
_MOST_ROUTERS: Final = 64
_NEVER: Final = float("-inf")


@dataclass(slots=True)
class _Peer:
    heard: float
    told: float = _NEVER
    """When it told its load."""
    age: float = 0.0
    loads: dict[str, "dict[int | None, _Told]"] = field(default_factory=dict)
    """By engine, and by rank."""
    computed: dict[Name, float] = field(default_factory=dict)
    """As it said last of each engine."""


class _Told(NamedTuple):
    load: EngineLoad
    at: float


class Peers:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._computed: dict[Name, float] = {}
        """By engine, how much of it was heard of."""
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        """The one that was heard least recently first."""

    def heard(self, router: str, now: float) -> None:
        """It said anything at all."""
        peer = self._peers.get(router)
        if peer is None:
            self._peers[router] = _Peer(now)
            if len(self._peers) > _MOST_ROUTERS:
                self._peers.popitem(last=False)
        else:
            peer.heard = now
            self._peers.move_to_end(router)

    def told(self, router: str, age: float, loads: Iterable[EngineLoad], now: float) -> None:
        """`loads`: of engines that are known here."""
        if (peer := self._peers.get(router)) is not None:
            peer.told, peer.age, peer.loads = now, age, {}
            self._take(peer, loads, now)

    def changed(self, router: str, loads: Iterable[EngineLoad], now: float) -> None:
        """As in `told`, of these alone. Before it has told of all, that means nothing."""
        peer = self._peers.get(router)
        if peer is not None and peer.told != _NEVER:
            self._take(peer, loads, now)

    def _take(self, peer: _Peer, loads: Iterable[EngineLoad], now: float) -> None:
        for load in loads:
            peer.loads.setdefault(load.engine, {})[load.rank] = _Told(load, now)
            # What it had computed before it was first heard of is not of now.
            more = max(0.0, load.computed - peer.computed.get(load.name, load.computed))
            peer.computed[load.name] = load.computed
            self._computed[load.name] = self._computed.get(load.name, 0.0) + more
        for of_engines in (peer.computed, self._computed):
            while len(of_engines) > MOST_ENGINES:
                del of_engines[next(iter(of_engines))]

    def others(self, now: float) -> Callable[[Name], Others | None]:
        """What they have at an engine, by its name; None while it is not known of all of them, or there are none."""
        self._forget(now)
        fresh = [peer for peer in self._peers.values() if now - peer.told <= _FRESH]
        if not fresh or any(peer.told == _NEVER for peer in self._peers.values()):
            return lambda _: None
        return lambda name: self._others(name, fresh)

    def _others(self, name: Name, fresh: Iterable[_Peer]) -> Others | None:
        engine, rank = name
        found = []
        for peer in fresh:
            by_rank = peer.loads.get(engine, {})
            if any((each is None) != (rank is None) for each in by_rank):
                return None
            if (told := by_rank.get(rank)) is not None:
                found.append(told)
        return _sum(found, self._computed.get(name, 0.0))

    def oldest(self, now: float) -> tuple[str, float] | None:
        """The one that has listened longest, and the seconds."""
        fresh = [(peer.age, name) for name, peer in self._peers.items() if now - peer.told <= _FRESH]
        if not fresh:
            return None
        age, name = max(fresh)
        return name, age

    def _forget(self, now: float) -> None:
        while self._peers:
            name, peer = next(iter(self._peers.items()))
            if now - peer.heard <= _SILENT:
                return
            del self._peers[name]


def _sum(told: Iterable[_Told], computed: float) -> Others:
    in_flight = queued = prefill_tokens = prompt_tokens = 0
    backlog = Backlog(computed=computed)
    for load, at in told:
        in_flight += load.in_flight
        queued += min(load.queued, load.in_flight)
        prefill_tokens += load.prefill_tokens
        prompt_tokens += load.prompt_tokens
        backlog.work += load.work or load.prefill_tokens
        if load.head_work and (not backlog.head_work or at - load.head_age < backlog.head_at):
            backlog.head_work, backlog.head_at = load.head_work, at - load.head_age
        if load.still is not None:
            backlog.moved_at = max(backlog.moved_at, at - load.still)
    return Others(in_flight, queued, prefill_tokens, prompt_tokens, backlog)
