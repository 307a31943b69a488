"""What all peers share: load that is counted at the decision, and a belief of who holds which prefix."""

import random
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence

from benchmarks.fleet.memory import Memory
from benchmarks.fleet.ranks import RanksMemory
from headwater.prefix import ENDS
from headwater_router.index import PrefixIndex
from headwater_router.picker.base import Decision, Label, Picker, Prompt, Target
from headwater_router.picker.counting import CountedDecision, CountingPicker, begin
from headwater_router.picker.policies import Policies
from headwater_router.picker.targets import Targets


class Only(Policies):
    """The same picker for everybody."""

    def __init__(self, picker: Picker) -> None:
        self._only = picker
        super().__init__("round_robin", PrefixIndex())

    def of(self, policy: str | None, objective: str | None = None) -> Picker:
        return self._only

    def forget(self, target_id: str) -> None:
        self._only.forget(target_id)

    def follow(self, memory_of: Callable[[str], Memory | RanksMemory | None]) -> None:
        """`memory_of`: what the engine of a target holds."""
        if isinstance(self._only, FollowingPeer):
            self._only.memory_of = memory_of


class PrefixPeer(CountingPicker):
    """Believes that an endpoint holds what it was sent, as long as it would be kept in so many tokens."""

    tokens = 500_000

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._index = PrefixIndex()

    @abstractmethod
    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        """One of the targets, of which there is at least one. `cached`: tokens of the prompt that each should hold."""

    def choose(self, prompt: Prompt, targets: Targets, excluded: Collection[str]) -> Target:
        raise NotImplementedError  # `pick` is its own.

    def pick(
        self, prompt: Prompt, targets: Targets | Sequence[Target], now: float, excluded: Collection[str] = ()
    ) -> Decision:
        targets = Targets.of(targets)
        allowed = [target for target in targets.all if target.id not in excluded]
        target = self.best(prompt, allowed, cached := self.cached(prompt, allowed, now))
        units = int(self.tokens / prompt.text_block_tokens)
        tickets = self._index.dispatched(target.id, prompt.text_chain, None, now, units)
        self._index.answered(target.id, prompt.text_chain, tickets)
        left = prompt.tokens - cached[target]
        decision = CountedDecision(
            target, prompt, Label.APPROXIMATE, cached[target], None, None, now, targets, prefill_tokens=left
        )
        begin(decision)
        return decision

    def cached(self, prompt: Prompt, targets: Sequence[Target], now: float) -> dict[Target, int]:
        """Tokens of the prompt that each should hold."""
        match, cached = self._index.match(prompt.text_chain, now), dict.fromkeys(targets, 0)
        for target in targets:
            holder = self._index.holders.get(target.id)
            if holder is not None:
                tokens = ENDS[match.depth(holder)] * prompt.text_block_tokens
                cached[target] = min(int(tokens), prompt.tokens - 1)
        return cached

    def forget(self, target_id: str) -> None:
        self._index.forget(target_id)

    def fewest(self, targets: Sequence[Target]) -> Target:
        """In flight; of several one by chance."""
        least = min(map(requests, targets))
        return self.rng.choice([target for target in targets if requests(target) == least])


class FollowingPeer(PrefixPeer):
    """Knows what engines hold, as their KV events tell."""

    memory_of: Callable[[str], Memory | RanksMemory | None]


def requests(target: Target) -> int:
    """Those of ours there; what was turned down lately counts, as the dispatcher has it."""
    return target.load.in_flight + target.load.penalty
