"""A request's stay at one endpoint, from the decision to its one outcome.

sent ──> answering ──> generating ──> ended
  └────────────┴─────────────────────────^

Whoever passes the bytes on says what happens; each step is possible only from those before it, and the end comes
exactly once, or the counts that all decisions rest on would drift.
"""

from collections.abc import Collection
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Decision, Picker
from headwater_router.picker.split import Why

if TYPE_CHECKING:
    from headwater_router.dispatch.call import Call
    from headwater_router.gateway.usage import Usage


class Stage(IntEnum):
    SENT = 0
    ANSWERING = 1
    """The head of the answer is here."""
    GENERATING = 2
    """So is the first piece of content."""
    ENDED = 3


class Judge(Protocol):
    """Draws the conclusions: the dispatcher."""

    def began(self, dispatch: "Dispatch", now: float) -> None: ...

    def left(self, dispatch: "Dispatch", now: float) -> None: ...


class Dispatch:
    """Times are monotonic seconds, given by the caller."""

    __slots__ = ("_judge", "at", "attempt", "call", "decision", "endpoint", "first_token_at", "life", "outcome",
                 "picker", "reason", "retry_after", "stage", "status", "upstream_model", "usage", "why")  # fmt: skip

    def __init__(
        self,
        call: "Call",
        endpoint: Endpoint,
        upstream_model: str,
        picker: Picker,
        decision: Decision,
        judge: "Judge",
        why: Why = Why.ALONE,
    ) -> None:
        """`upstream_model`: what the endpoint calls the model, where that is not what the client does. `why`: it went
        to the endpoint's deployment."""
        self.call = call
        self.endpoint = endpoint
        self.life = endpoint.life
        self.upstream_model = upstream_model
        self.picker = picker
        self.decision = decision
        self.at = decision.at
        self.attempt = 1 + len(call.stays)
        """1 is the call's first stay."""
        self.stage = Stage.SENT
        self.status: int | None = None
        self.retry_after = 0.0
        """Seconds for which the endpoint asked to be left alone. Whoever passes the bytes on writes it."""
        self.first_token_at: float | None = None
        self.outcome: Outcome | None = None
        self.reason = ""
        """In words, where it was not answered."""
        self.usage: Usage | None = None
        self.why = why
        self._judge = judge

    def answered(self, status: int) -> None:
        """The head of the answer is here."""
        self._go_on(Stage.ANSWERING)
        self.status = status

    def first_token(self, now: float) -> None:
        """The first piece of content is here: not a comment, and not an event that only says that there will be one."""
        self._go_on(Stage.GENERATING)
        self.first_token_at = now
        self.picker.first_token(self.decision, now)
        self._judge.began(self, now)

    def ended(self, outcome: Outcome, now: float, *, usage: "Usage | None" = None, reason: str = "") -> None:
        self._go_on(Stage.ENDED)
        self.outcome, self.usage, self.reason = outcome, usage, reason
        told = (usage.cached_tokens, usage.output_tokens) if usage else ()
        self.picker.finished(self.decision, now, outcome, *told)
        self._judge.left(self, now)

    def _go_on(self, stage: Stage) -> None:
        """Raises ValueError for a step back, or a second one: that is a mistake of ours."""
        if stage <= self.stage:
            raise ValueError(f"a stay at {self.endpoint.name} cannot go from {self.stage.name} to {stage.name}")
        self.stage = stage


def targets_of(stays: Collection[Dispatch]) -> frozenset[str]:
    """Ids of all that stand for their endpoints now, which may be others than when they were sent there. Of one that
    has restarted, none."""
    if not stays:  # As of nearly all requests.
        return frozenset()
    there = (stay.endpoint.target_ids for stay in stays if stay.life == stay.endpoint.life)
    return frozenset().union(*there)
