"""Counts load, so that a policy only has to choose.

A policy's `choose` looks and decides; what `pick` then counts is visible to the very next `pick`, so a burst of
requests spreads without waiting for an answer or a gauge. Everything that was counted is given back when the request
ends, however it ends.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass

from headwater_router.outcome import Outcome
from headwater_router.picker.base import Decision, Label, Prompt, Target
from headwater_router.picker.targets import Targets


@dataclass(slots=True, eq=False)
class CountedDecision(Decision):
    """A decision with what it put on its target's load."""

    targets: Targets
    """Among which it was made."""
    _: KW_ONLY
    prefilling: bool = False
    """Its prompt still counts among the target's `prefill_tokens`."""
    prefill_tokens: int = 0
    ended: bool = False


class CountingPicker(ABC):
    """Keeps `Load.in_flight` and `Load.prefill_tokens` for every policy."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    @abstractmethod
    def choose(self, prompt: Prompt, targets: Targets, excluded: Collection[str]) -> Target:
        """One of `targets` that is not excluded. Raises ValueError if there is none."""

    def pick(
        self, prompt: Prompt, targets: Targets | Sequence[Target], now: float, excluded: Collection[str] = ()
    ) -> Decision:
        targets = Targets.of(targets)
        target = self.choose(prompt, targets, excluded)
        decision = CountedDecision(
            target, prompt, Label.FALLBACK, 0, None, None, now, targets, prefill_tokens=prompt.tokens
        )
        begin(decision)
        return decision

    def alone(self, prompt: Prompt, targets: Targets, now: float) -> float:
        """Nothing is learned."""
        return 0.0

    def first_token(self, decision: Decision, now: float) -> None:
        end_prefill(counted(decision))

    def finished(
        self,
        decision: Decision,
        now: float,
        outcome: Outcome,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        end(counted(decision))

    def forget(self, target_id: str) -> None:
        """Nothing is known of what a target holds."""
        return


def counted(decision: Decision) -> CountedDecision:
    """Raises TypeError for a decision that is not from one of these policies."""
    if not isinstance(decision, CountedDecision):
        raise TypeError(f"this picker did not make the decision {decision!r}")
    return decision


def begin(decision: CountedDecision) -> None:
    load = decision.target.load
    load.in_flight += 1
    load.prompt_tokens += decision.prompt.tokens
    load.queued += 1
    load.prefill_tokens += decision.prefill_tokens
    load.kv_tokens += decision.prefill_tokens
    decision.prefilling = True


def end_prefill(decision: CountedDecision) -> None:
    if decision.prefilling:
        decision.prefilling = False
        decision.target.load.queued -= 1
        decision.target.load.prefill_tokens -= decision.prefill_tokens


def end(decision: CountedDecision) -> None:
    """Raises ValueError if the decision ended before: counts that go below zero would attract all traffic."""
    if decision.ended:
        raise ValueError(f"the decision for {decision.target.id} was finished twice")
    decision.ended = True
    if decision.prefilling:
        end_prefill(decision)
    decision.target.load.in_flight -= 1
    decision.target.load.kv_tokens -= decision.prefill_tokens
    decision.target.load.prompt_tokens -= decision.prompt.tokens
    decision.targets.eased(decision.target)
