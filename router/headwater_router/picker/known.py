"""What the prefix policy knows of one endpoint beside its load, and of a request that it sent there."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import Struct

from headwater_router.index.prefixes import Tickets
from headwater_router.picker.base import Candidate, Decision, Load, Others, Target
from headwater_router.picker.counting import CountedDecision, begin, counted, end_prefill
from headwater_router.picker.speed import Factor, Pace, Stretch


class Sums(NamedTuple):
    """Of all that an endpoint did up to some moment, of which two make a stretch of time."""

    at: float
    answers: float
    """Answers in progress, times the seconds for which they were."""
    context: float
    """Tokens of their prompts, times these seconds."""
    tokens: float
    """Of prompts, as `work` weighs them."""


@dataclass(slots=True, eq=False)
class Known:
    factor: Factor = field(default_factory=Factor)
    pace: Pace | None = None
    """Of its deployment, once it has answered."""
    fresh_until: float = float("-inf")
    """When its speed is too old to go by."""
    queue: "OrderedDict[Routed, None]" = field(default_factory=OrderedDict)
    """Requests of ours whose first token has not come, oldest first."""
    head: "Routed | None" = None
    """The first of them."""
    queued_work: float = 0.0
    """Of all of them."""
    outputs: float = 0.0
    """Tokens that their answers are expected to have."""
    last_first_byte: float = float("-inf")
    trust: float = 1.0
    """Share of the tokens that were expected in its cache that its answers then reported as cached."""
    whole_answers: "deque[tuple[float, Routed]]" = field(default_factory=deque)
    """Requests that are not streamed, with the time at which their prefill should be over."""
    seen_running: int | None = None
    seen_waiting: int | None = None
    """The gauges as last reported."""
    foreign_running: int = 0
    """Requests there that are not ours and are being answered."""
    foreign_waiting: int = 0
    foreign_work: float | None = None
    """Tokens of their prompts that are to be computed before, where their routers say so."""
    foreign_context: int = 0
    """Tokens of the prompts of all of them, where their routers say so."""
    seen_others: Others | None = None
    _at: float = 0.0
    _answers: float = 0.0
    _context: float = 0.0
    _tokens: float = 0.0

    def see_gauges(self, load: Load) -> None:
        """What is there of others: as their routers say, else what the engine's gauges have beyond our own count."""
        others, before = load.others, self.seen_others
        self.seen_others = others
        if others is not None:
            self.foreign_waiting = others.queued
            self.foreign_running = others.in_flight - others.queued
            self.foreign_work, self.foreign_context = others.prefill_tokens, others.prompt_tokens
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
            self.foreign_work, self.foreign_context = None, 0

    def sums(self, load: Load, now: float) -> Sums:
        """Up to now, with what is there since they were last brought up to date. To be called before that changes."""
        seconds = now - self._at
        if seconds > 0:
            self._at = now
            self._answers += seconds * (load.in_flight - len(self.queue) + self.foreign_running)
            self._context += seconds * (load.prompt_tokens + self.foreign_context)
        return Sums(now, self._answers, self._context, self._tokens)

    def computed(self, work: float) -> None:
        self._tokens += work


class Compared(Struct, order=True):
    """One of those that a decision compared. Orders by what comes first."""

    cost: float
    """Seconds, of it and of others, as the objective weighs them."""
    place: int
    """Among those compared; keeps comparisons from going on to what cannot be compared."""
    first: float
    """Predicted seconds until its first token."""
    rest: float
    """And from there to its last."""
    prefill: float
    """Of the first, for the prompt itself."""
    work: float
    """Tokens of the prompt to compute, as `work` weighs them."""
    ahead: float
    """The same of those that are computed before it."""
    answers: float
    """In progress there."""
    crowd: float
    """Requests there, the more the slower it is."""
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
    pace: Pace
    work: float
    output: float
    """Tokens that its answer is expected to have."""
    until_first: Stretch
    """What is done there up to its first token, as was predicted."""
    since: Sums
    """When its first token came; before, and where it is not streamed, when it was sent."""
    others: float
    """Seconds that it takes from the others there, as was predicted."""

    def candidates(self) -> list[Candidate]:
        learned = self.predicted_ttft is not None
        return [
            Candidate(each.target.id, each.first if learned else None, each.cached_tokens)
            for each in sorted(self.compared)
        ]

    def taken(self) -> float:
        return self.others

    def begin(self) -> None:
        begin(self)
        known = self.chosen.known
        known.queue[self] = None
        known.queued_work += self.work
        known.outputs += self.output
        if known.head is None:
            known.head = self

    def end_prefill(self) -> None:
        """Its first token is here, or it has ended before."""
        if self.prefilling:
            known = self.chosen.known
            del known.queue[self]
            known.queued_work = known.queued_work - self.work if known.queue else 0.0
            if known.head is self:
                known.head = next(iter(known.queue), None)
            end_prefill(self)

    def leave(self) -> None:
        """It has ended; its load is still counted."""
        self.chosen.known.outputs -= self.output


def routed(decision: Decision) -> Routed:
    """Raises TypeError for a decision that is not from the prefix policy."""
    found = counted(decision)
    if not isinstance(found, Routed):
        raise TypeError(f"the prefix policy did not make the decision {decision!r}")
    return found
