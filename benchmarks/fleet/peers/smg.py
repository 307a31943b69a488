"""The SGLang model gateway and its relative for vLLM, `--policy cache_aware`.

Source: docs/concepts/routing/cache-aware.md and docs/getting-started/load-balancing.md of github.com/lightseekorg/smg,
docs.sglang.io/advanced_features/sgl_model_gateway.html, github.com/vllm-project/router.
Defaults: cache threshold 0.3, balance 64 absolute and 1.5 relative; a tree of 67,108,864 characters a model.
"""

from collections.abc import Mapping, Sequence
from statistics import mean

from benchmarks.fleet.peers.base import PrefixPeer, requests
from headwater_router.picker.base import Prompt, Target

_THRESHOLD = 0.3
_ABSOLUTE = 64
_RELATIVE = 1.5


class SMG(PrefixPeer):
    """To the longest match, if that is enough of the prompt and its holder is not hot; else where the wait is shortest.
    A hot holder has more than 1.5 times the mean and more than 64 above it."""

    tokens = 67_108_864 // 4 // 8

    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        most = max(cached.values())
        if most > _THRESHOLD * prompt.tokens:
            usual = mean(map(requests, targets))
            holder = self.fewest([target for target in targets if cached[target] == most])
            if not (requests(holder) > _RELATIVE * usual and requests(holder) > usual + _ABSOLUTE):
                return holder
        return self.fewest(targets)


class VLLMRouter(PrefixPeer):
    """The older rule: while loads are apart by more than 64 and by more than 1.5 times, to the least loaded; else to
    the longest match if that is enough, else to whose tree is the smallest."""

    tokens = 67_108_864 // 4 // 8

    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        loads = [*map(requests, targets)]
        if max(loads) - min(loads) > _ABSOLUTE and max(loads) > _RELATIVE * min(loads):
            return self.fewest(targets)
        most = max(cached.values())
        if most > _THRESHOLD * prompt.tokens:
            return self.rng.choice([target for target in targets if cached[target] == most])
        return min(targets, key=lambda target: (self._index.blocks(target.id), self.rng.random()))
