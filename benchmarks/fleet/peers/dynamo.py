"""NVIDIA Dynamo's KV router.

Source: docs.nvidia.com/dynamo, components/router: "Routing concepts" and "Configuration and tuning" (1.2.1). Cost of a
worker = overlap weight x prefill blocks + decode blocks, the lowest wins. Prefill blocks: tokens of prompts that are
being computed there, and of this one, without what overlaps. Decode blocks: those that are active there, each once,
with this one's. Defaults: weight 1, temperature 0; the output is not counted."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from benchmarks.fleet.peers.base import PrefixPeer
from headwater.prefix import ENDS
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Decision, Prompt, Target
from headwater_router.picker.targets import Targets


class Dynamo(PrefixPeer):
    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._active: defaultdict[Target, Counter[int]] = defaultdict(Counter)
        """Blocks of requests that are there, and how many of these have each."""
        self._tokens: Counter[Target] = Counter()
        """Of these blocks, and of what is behind the last one of each prompt."""

    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        costs = {}
        for target in targets:
            prefill = target.load.prefill_tokens + prompt.tokens - cached[target]
            costs[target] = prefill + self._tokens[target] + self._new(target, prompt)
        least = min(costs.values())
        return self.rng.choice([target for target in targets if costs[target] == least])

    def pick(
        self, prompt: Prompt, targets: Targets | Sequence[Target], now: float, excluded: Collection[str] = ()
    ) -> Decision:
        decision = super().pick(prompt, targets, now, excluded)
        target = decision.target
        self._tokens[target] += self._new(target, prompt)
        self._active[target].update(prompt.text_chain)
        return decision

    def finished(self, decision: Decision, now: float, outcome: Outcome, *told: int | None) -> None:
        super().finished(decision, now, outcome, *told)
        target, prompt = decision.target, decision.prompt
        self._active[target].subtract(prompt.text_chain)
        self._active[target] += Counter()  # Those that nobody has any more go.
        self._tokens[target] -= self._new(target, prompt)

    def _new(self, target: Target, prompt: Prompt) -> int:
        """Tokens of the prompt that no active request there has."""
        chain, active = prompt.text_chain, self._active[target]
        shared = next((place for place, key in enumerate(chain) if not active.get(key)), len(chain))
        return prompt.tokens - int(ENDS[shared] * prompt.text_block_tokens)
