"""Who could take a request now: those that serve its model, less those that it must not go to, or that have no room."""

from collections.abc import Callable, Set
from dataclasses import dataclass

from headwater_router.admission.room import WaitReason
from headwater_router.dispatch.call import Call
from headwater_router.dispatch.dispatch import targets_of
from headwater_router.dispatch.lineup import Lineup, Lineups, lineups
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.endpoints.fleet import Fleet
from headwater_router.picker.base import Target


@dataclass(slots=True)
class Found:
    """There is at least one that is not avoided."""

    lineups: list[Lineup]
    avoided: Set[str]
    """Ids of targets among them that it must not go to."""


class Candidates:
    """Times are monotonic seconds."""

    def __init__(self, fleet: Fleet, *, waits: bool) -> None:
        """`waits`: requests wait for an endpoint that has room; else all that are ready have."""
        self._fleet = fleet
        self.waits = waits
        self._lineups = Lineups(fleet)
        self._busy_until: dict[Endpoint, float] = {}
        """They asked to be left alone."""
        self.full: set[str] = set()
        """Ids of the targets that have no room. To be read only."""

    def of(self, model: str) -> list[Lineup]:
        """All that it could go to where they had room, but for the ejected."""
        return self._lineups.of(model)

    def find(self, call: Call, now: float) -> Found | WaitReason | None:
        """None: nobody serves it who could still be asked. The ejected count where there is no other: to send there
        anyway is better than to send nowhere."""
        tried = targets_of(call.tried)
        if call.only is not None:
            there = self._of(call, tried, lambda endpoint: endpoint is call.only)
        else:
            there = self._lineups.of(call.model) or self._of(call, tried, lambda endpoint: True)
        avoided: Set[str] = tried
        if self._busy_until or self.full:
            avoided = avoided | self.full | self._busy(now)
        for without in (avoided | targets_of(call.doubtful), avoided):
            if found := [lineup for lineup in there if lineup.has_more_than(without)]:
                return Found(found, without)
        if self.waits and any(lineup.has_more_than(tried) for lineup in there):
            return WaitReason.FULL
        return self._soonest(call, tried, there, now)

    def _soonest(self, call: Call, tried: Set[str], there: list[Lineup], now: float) -> Found | None:
        """Where all that were not tried are busy, and nobody waits: the one that is free soonest, and that once. Its
        word is worth more to the client than ours; and the others have given theirs."""
        left = [
            (self._busy_until.get(endpoint, now), number, target)
            for number, lineup in enumerate(there)
            for target, (endpoint, _) in lineup.served.items()
            if target not in tried
        ]
        if not left or call.insisted:
            return None
        _, number, target = min(left)
        served = there[number].served
        return Found([there[number]], served.keys() - served[target][0].target_ids)

    def _of(self, call: Call, tried: Set[str], wanted: Callable[[Endpoint], bool]) -> list[Lineup]:
        """Those that take requests, ejected or not, and were not tried."""
        there = (each for each in self._fleet.serving(call.model) if each[0].takes_requests and wanted(each[0]))
        return [lineup for lineup in lineups(self._fleet, there) if lineup.has_more_than(tried)]

    # Room

    def is_busy(self, endpoint: Endpoint) -> bool:
        return endpoint in self._busy_until

    def busy_for(self, endpoint: Endpoint, now: float) -> float:
        """Seconds for which it is still to be left alone; not above 0 where it is not."""
        return self._busy_until.get(endpoint, now) - now

    def leave_alone(self, endpoint: Endpoint, until: float) -> None:
        self._busy_until[endpoint] = until

    def next_free(self) -> float | None:
        """When the first of those that are busy is not any more."""
        return min(self._busy_until.values(), default=None)

    def settle(self, now: float) -> bool:
        """Whether the time of one that was busy is over."""
        if not self._busy_until:
            return False
        before = len(self._busy_until)
        self._forget_free(now)
        return len(self._busy_until) < before

    def check(self, target: Target) -> None:
        """What is known of its load has changed."""
        if not self.waits:
            return
        load = target.load
        if load.ceiling.has_room(load.there, load.kv_tokens):
            self.full.discard(target.id)
        else:
            self.full.add(target.id)

    def forget_gone(self) -> None:
        """The fleet has changed."""
        if self.full:
            self.full &= {each for endpoint in self._fleet for each in endpoint.target_ids}

    def serves(self, target: Target, model: str) -> bool:
        """Whether a request for the model may go there now, as far as is known at once."""
        known = self._lineups.of(model)
        return not known or any(target.id in lineup.served for lineup in known)

    def _busy(self, now: float) -> set[str]:
        """Ids of the targets that want nothing for now."""
        self._forget_free(now)
        return {each for endpoint in self._busy_until for each in endpoint.target_ids}

    def _forget_free(self, now: float) -> None:
        for endpoint in [endpoint for endpoint, until in self._busy_until.items() if until <= now]:
            del self._busy_until[endpoint]
