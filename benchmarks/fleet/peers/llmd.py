"""llm-d's endpoint picker, with its default profile, with precise prefixes, and with its affinity filter.

Source: llm-d.ai/docs, "Request Scheduler" and "Prefix-cache aware routing"; default weights queue 2, KV cache
utilization 2, prefix cache 3; the highest weighted sum of scores from 0 to 1 wins, of several one by chance. Its
approximate index keeps 31,250 blocks of 64 tokens for each pod. Queue and KV are gauges, read every 50 ms.

The precise scorer follows KV events, with the same weights; what was sent counts as held for two seconds (README of the
plugin precise-prefix-cache-scorer, github.com/llm-d/llm-d-router, speculative indexing).

The affinity filter keeps those that hold at least 0.8 of the prompt, unless the prompt tokens that wait at the best of
these would take longer, by more than a penalty, than at the best of the others; then the one with the least uncached
tokens, this prompt's among them, wins (README of prefix-cache-affinity-filter and token-load-scorer there). Defaults:
15,928 tokens/s and 18 s. Its makers want the rate measured: a chunk of 8,192 tokens at an idle engine, which is 32,000
tokens/s of the modelled H100; and for work that is mostly answers, the one with the fewest requests to win. `tuned` has
both, and a penalty of 0.1 s: of 0.02, 0.1, 0.5, 2 and 18 the best in the fleet's hot prefix and 150 groups."""

import random
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from benchmarks.fleet.memory import BLOCK, chain_of
from benchmarks.fleet.peers.base import FollowingPeer, PrefixPeer
from headwater_router.picker.base import Decision, Prompt, Target
from headwater_router.picker.targets import Targets

_SPECULATIVE: Final = 2.0
"""Seconds."""
_AFFINITY: Final = 0.8


class LLMD(PrefixPeer):
    tokens = 31_250 * 64

    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        waiting = {target: target.load.reported_waiting or 0 for target in targets}
        least, most = min(waiting.values()), max(waiting.values())
        scores = {}
        for target in targets:
            queue = 1.0 if most == least else (most - waiting[target]) / (most - least)
            room = 1.0 - (target.load.reported_cache_usage or 0.0)
            scores[target] = 2 * queue + 2 * room + 3 * cached[target] / prompt.tokens
        best = max(scores.values())
        return self.rng.choice([target for target in targets if scores[target] == best])


class LLMDPrecise(FollowingPeer, LLMD):
    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._sent: defaultdict[str, OrderedDict[int, float]] = defaultdict(OrderedDict)
        """Blocks that should be there soon, until when that is believed, the oldest first."""

    def cached(self, prompt: Prompt, targets: Sequence[Target], now: float) -> dict[Target, int]:
        chain, found = _chain(prompt), {}
        for target in targets:
            memory, sent = self.memory_of(target.id), self._sent[target.id]
            while sent and next(iter(sent.values())) <= now:
                sent.popitem(last=False)
            held = 0
            for key in chain:
                if key not in sent and not (memory is not None and memory.holds(key)):
                    break
                held += 1
            found[target] = min(BLOCK * held, prompt.tokens - 1)
        return found

    def pick(
        self, prompt: Prompt, targets: Targets | Sequence[Target], now: float, excluded: Collection[str] = ()
    ) -> Decision:
        decision = super().pick(prompt, targets, now, excluded)
        sent = self._sent[decision.target.id]
        for key in _chain(prompt):
            sent[key] = now + _SPECULATIVE
            sent.move_to_end(key)
        return decision

    def forget(self, target_id: str) -> None:
        super().forget(target_id)
        self._sent.pop(target_id, None)


class LLMDAffinity(PrefixPeer):
    tokens = 31_250 * 64
    tokens_per_second = 15_928.0
    penalty = 18.0
    """Seconds."""

    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        sticky = [target for target in targets if cached[target] >= _AFFINITY * (prompt.tokens - 1)]
        others = [target for target in targets if target not in sticky]
        if sticky and others:
            later = min(map(_waiting, sticky)) - min(map(_waiting, others))
            if later > self.penalty * self.tokens_per_second:
                sticky = []
        return self.least(prompt, sticky or targets, cached)

    def least(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        load = {target: _waiting(target) + prompt.tokens - cached[target] for target in targets}
        least = min(load.values())
        return self.rng.choice([target for target in targets if load[target] == least])


class LLMDAffinityTuned(LLMDAffinity):
    tokens_per_second = 32_000.0
    penalty = 0.1

    def least(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        return self.fewest(targets)


def _waiting(target: Target) -> int:
    """Uncached tokens of prompts of ours that have no first token yet."""
    return target.load.prefill_tokens


def _chain(prompt: Prompt) -> list[int]:
    """The blocks of engines."""
    request = getattr(prompt, "request", None)
    return [] if request is None else chain_of(request.adapter, request.prompt)
