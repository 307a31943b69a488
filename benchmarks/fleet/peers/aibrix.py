"""AIBrix, `prefix-cache`.

Source: the README of pkg/plugins/gateway/algorithms in github.com/vllm-project/aibrix (v0.5.0): where running requests
are apart by more than 8, the pod with the fewest; else, of the pods with the longest match, from the longest down, the
first whose running requests are no more than the mean and one standard deviation; else the fewest. Blocks of 128
characters, 200,000 of them."""

from collections.abc import Mapping, Sequence
from statistics import mean, pstdev

from benchmarks.fleet.peers.base import PrefixPeer, requests
from headwater_router.picker.base import Prompt, Target

_APART = 8
_DEVIATIONS = 1.0


class AIBrix(PrefixPeer):
    tokens = 200_000 * 128 // 4 // 8

    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        loads = [*map(requests, targets)]
        if max(loads) - min(loads) > _APART:
            return self.fewest(targets)
        bound = mean(loads) + _DEVIATIONS * pstdev(loads)
        for depth in sorted({each for each in cached.values() if each}, reverse=True):
            matched = [target for target in targets if cached[target] == depth and requests(target) <= bound]
            if matched:
                return self.fewest(matched)
        return self.fewest(targets)
