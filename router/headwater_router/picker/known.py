"""What the prefix policy knows of one endpoint beside its load, and of a request that it sent there."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from headwater_router.index.prefixes import Tickets
from headwater_router.picker.base import Candidate, Decision, Load, Others, Target
from headwater_router.picker.counting import CountedDecision, begin, counted, end_prefill
from headwater_router.picker.speed import Speed


@dataclass(slots=True, eq=False)
class Known:
    speed: Speed = field(default_factory=Speed)
    fresh_until: float = float("-inf")
    """When its speed is too old to go by."""
    queue: "OrderedDict[Routed, None]" = field(default_factory=OrderedDict)
    """Requests of ours whose first byte has not come, oldest first."""
    head: "Routed | None" = None
    """The first of them."""
    last_first_byte: float = float("-inf")
    trust: float = 1.0
    """Share of the tokens that dispatches let expect in its cache that its answers then reported as cached."""
    whole_answers: "deque[tuple[float, Routed]]" = field(default_factory=deque)
    """Requests that are not streamed, with the time at which their prefill should be over."""
    seen_running: int | None = None
    seen_waiting: int | None = None
    """The gauges as last reported."""
    foreign_running: int = 0
    """Requests there that are not ours and are being answered."""
    foreign_waiting: int = 0
    seen_others: Others | None = None

    def see_gauges(self, load: Load) -> None:
        """What is there of others: as their routers say, else what the engine's gauges have beyond our own count."""
        others, before = load.others, self.seen_others
        self.seen_others = others
        if others is not None:
            self.foreign_waiting = others.queued
            self.foreign_running = others.in_flight - others.queued
        elif (
            before is not None
            or load.reported_waiting != self.seen_waiting
            or load.reported_running != self.seen_running
        ):
            self.seen_waiting, self.seen_running = load.reported_waiting, load.reported_running
            running, waiting = load.reported_running or 0, load.reported_waiting or 0
            foreign = max(0, running + waiting - load.in_flight)
            self.foreign_waiting = min(foreign, max(0, waiting - len(self.queue)))
            self.foreign_running = foreign - self.foreign_waiting

    def head_progress(self, head: "Routed", per_token: float, now: float) -> float:
        """Tokens that should be computed by now of the prompt at the head of the queue, at most all of it."""
        last = self.last_first_byte
        progress = (now - (head.at if head.at > last else last)) / per_token
        return progress if progress < head.prefill_tokens else head.prefill_tokens


class Compared(Struct, order=True):
    """One of those that a decision compared. Orders by what comes first."""

    seconds: float
    """Predicted until the first token."""
    place: int
    """Among those compared; keeps comparisons from going on to what cannot be compared."""
    prefill_seconds: float
    """Of these, for the prompt itself."""
    total_tokens: float
    answers: int
    """What the prediction multiplied the endpoint's two coefficients with."""
    target: Target
    known: Known
    cached_tokens: int
    expected_tokens: float
    """Cached tokens before they were discounted by the endpoint's trust."""


@dataclass(slots=True, eq=False)
class Routed(CountedDecision):
    chosen: Compared
    compared: Sequence[Compared]
    tickets: Tickets

    def candidates(self) -> list[Candidate]:
        learned = self.predicted_ttft is not None
        return [
            Candidate(each.target.id, each.seconds if learned else None, each.cached_tokens)
            for each in sorted(self.compared)
        ]

    def begin(self) -> None:
        begin(self)
        known = self.chosen.known
        known.queue[self] = None
        if known.head is None:
            known.head = self

    def end_prefill(self) -> None:
        if self.prefilling:
            known = self.chosen.known
            del known.queue[self]
            if known.head is self:
                known.head = next(iter(known.queue), None)
            end_prefill(self)


def routed(decision: Decision) -> Routed:
    """Raises TypeError for a decision that is not from the prefix policy."""
    found = counted(decision)
    if not isinstance(found, Routed):
        raise TypeError(f"the prefix policy did not make the decision {decision!r}")
    return found
