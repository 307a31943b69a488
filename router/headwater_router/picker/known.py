"""What the prefix policy knows of one endpoint beside its load, and of a request that it sent there."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from headwater_router.admission.ceiling import SILENCE, Report
from headwater_router.index.prefixes import Tickets
from headwater_router.picker.adapters import Slots
from headwater_router.picker.base import Backlog, Candidate, Decision, Load, Others, Target
from headwater_router.picker.counting import CountedDecision, begin, end_prefill
from headwater_router.picker.heard import Heard, stretch_of
from headwater_router.picker.objective import Weights
from headwater_router.picker.speed import Factor, Pace, Stretch

_STALE_SECONDS: Final = 300.0
"""Without an answer, after which an endpoint's own speed is not gone by."""


class Sums(Struct, frozen=True, gc=False):
    """Of all that an endpoint did up to some moment, of which two make a stretch of time."""

    at: float
    answers: float
    """Answers in progress, times the seconds for which they were."""
    context: float
    """Tokens of their prompts, times these seconds."""
    tokens: float
    """Of prompts, as `work` weighs them."""


_NEVER: Final = Sums(float("-inf"), 0.0, 0.0, 0.0)


@dataclass(slots=True, eq=False)
class Known:
    factor: Factor = field(default_factory=Factor)
    pace: Pace | None = None
    """Of its deployment, once it has answered."""
    fresh_until: float = float("-inf")
    """When its speed is too old to go by."""
    own_factor: float = 0.0
    """Its factor, where that is to be gone by; 0: what is usual is."""
    queue: "OrderedDict[Routed, None]" = field(default_factory=OrderedDict)
    """Requests of ours whose first token has not come, oldest first."""
    head: "Routed | None" = None
    """The first of them."""
    backlog: Backlog = field(default_factory=Backlog)
    """Of all of them, for the `Load`."""
    outputs: float = 0.0
    """Tokens that their answers are expected to have."""
    waits: float = 0.0
    """Of all our requests there, see `Routed.wait`."""
    trust: float = 1.0
    """Share of the tokens that were expected in its cache that its answers then reported as cached."""
    whole_answers: "deque[tuple[float, Routed]]" = field(default_factory=deque)
    """Requests that are not streamed, with the time at which their prefill should be over."""
    slots: Slots = field(default_factory=Slots)
    """Of its adapters."""
    heard: Heard = field(default_factory=Heard)
    """Of the time of its tokens,"""
    heard_since: Sums = _NEVER
    """and when."""
    seen_report: Report = SILENCE
    """The gauges as they were looked at last."""
    foreign_running: int = 0
    """Requests there that are not ours and are being answered."""
    foreign_waiting: int = 0
    foreign_work: float | None = None
    """Tokens of their prompts that are to be computed before, where their routers say so."""
    foreign_context: int = 0
    """Tokens of the prompts of all of them, where their routers say so."""
    seen_others: Others | None = None
    stale: bool = True
    """The next ones are to be worked out anew."""
    in_flight: int = 0
    """Of ours, when they were."""
    answers: int = 0
    """In progress there, ours and others'."""
    requests: int = 0
    prompts: int = 0
    """Tokens of all their prompts."""
    other: float = 0.0
    """Tokens that one of the answers of ours is expected to have; 0: there is none."""
    head_work: float = 0.0
    """Of the first in the queue there, ours or others'; 0: there is none."""
    head_since: float = 0.0
    """When its turn came."""
    _at: float = 0.0
    _answers: float = 0.0
    _context: float = 0.0
    _tokens: float = 0.0

    def measured(self, pace: Pace, now: float) -> None:
        """Its factor was."""
        self.pace, self.fresh_until = pace, now + _STALE_SECONDS
        self.own_factor = self.factor.apart(pace.usual)

    def see_gauges(self, load: Load, now: float) -> None:
        """What is there of others: as their routers say, else what the engine's gauges have beyond our own count."""
        others, before = load.others, self.seen_others
        report, seen = load.reported, self.seen_report
        self.seen_others, self.seen_report, self.stale = others, report, True
        if report is not seen:
            self.slots.told(report.adapters)
            self._hear(load, now)
        if others is not None:
            self.foreign_waiting = others.queued
            self.foreign_running = others.in_flight - others.queued
            self.foreign_work, self.foreign_context = others.prefill_tokens, others.prompt_tokens
            if (theirs := others.backlog) is not None:
                self.foreign_work = theirs.work
                if before is not None and before.backlog is not None:
                    # It begins anew with the way to the others.
                    self.computed(max(0.0, theirs.computed - before.backlog.computed))
        elif before is not None or (report.waiting, report.running) != (seen.waiting, seen.running):
            running, waiting = report.running or 0, report.waiting or 0
            foreign = max(0, running + waiting - load.in_flight)
            self.foreign_waiting = min(foreign, max(0, waiting - len(self.queue)))
            self.foreign_running = foreign - self.foreign_waiting
            self.foreign_work, self.foreign_context = None, 0

    def _hear(self, load: Load, now: float) -> None:
        since, until = self.heard_since, self.sums(load, now)
        self.heard_since, seconds = until, until.at - since.at
        steps = self.heard.steps(load.reported.token_times, seconds)
        if steps and (pace := self.pace) is not None:
            answers, context = (until.answers - since.answers) / seconds, (until.context - since.context) / seconds
            pace.measure(stretch_of(steps, answers, context, until.tokens - since.tokens), seconds, self.factor)
            self.measured(pace, now)

    def settle(self, load: Load) -> None:
        """Something has come, begun to answer, or ended. What many decisions ask in between is worked out once."""
        ours = self.in_flight = load.in_flight
        self.answers = ours - len(self.queue) + self.foreign_running
        self.requests = ours + self.foreign_running + self.foreign_waiting
        self.prompts = load.prompt_tokens + self.foreign_context
        self.other = self.outputs / ours if ours else 0.0
        backlog = self.backlog
        self.head_work, since, moved_at = backlog.head_work, backlog.head_at, backlog.moved_at
        if self.seen_others is not None and (theirs := self.seen_others.backlog) is not None:
            # They are computed in the order in which they came, whoever sent them.
            if theirs.head_work and (not self.head_work or theirs.head_at < since):
                self.head_work, since = theirs.head_work, theirs.head_at
            moved_at = max(moved_at, theirs.moved_at)
        self.head_since = max(since, moved_at)
        self.stale = False

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

    def lead(self, head: "Routed | None") -> None:
        """It is the first of ours in the queue now."""
        self.head = head
        self.backlog.head_work, self.backlog.head_at = (head.work, head.at) if head is not None else (0.0, 0.0)


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
    weights: Weights
    """Of the objective by which it was chosen."""
    wait: float
    """Until its first token, as was predicted, in units of what a request takes to its end on average; so it tells how
    much dearer a further wait is to it."""

    def candidates(self) -> list[Candidate]:
        learned = self.predicted_ttft is not None
        return [
            Candidate(each.target.id, each.first if learned else None, each.cached_tokens)
            for each in sorted(self.compared)
        ]

    def taken(self) -> float:
        if self.predicted_ttft is None:
            return 0.0
        first, rest, others = self.weights
        return max(0.0, (self.chosen.cost - first * self.chosen.first - rest * self.chosen.rest) / others)

    def begin(self) -> None:
        begin(self)
        known = self.chosen.known
        known.queue[self] = None
        known.backlog.work += self.work
        known.outputs += self.output
        known.waits += self.wait
        if known.head is None:
            known.lead(self)

    def end_prefill(self) -> None:
        """Its first token is here, or it has ended before."""
        if self.prefilling:
            known = self.chosen.known
            del known.queue[self]
            known.stale = True
            known.backlog.work = known.backlog.work - self.work if known.queue else 0.0
            if known.head is self:
                known.lead(next(iter(known.queue), None))
            end_prefill(self)

    def leave(self) -> None:
        """It has ended; its load is still counted."""
        known = self.chosen.known
        known.stale = True
        known.outputs -= self.output
        known.waits = max(0.0, known.waits - self.wait)


def routed(decision: Decision) -> Routed:
    """Raises TypeError for a decision that is not from the prefix policy."""
    if not isinstance(decision, Routed):
        raise TypeError(f"the prefix policy did not make the decision {decision!r}")
    return decision
