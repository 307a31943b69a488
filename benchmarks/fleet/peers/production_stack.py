"""vLLM's production stack, `prefixaware`.

Source: docs.vllm.ai/projects/production-stack, "Prefix aware routing": the longest match in a trie of hashes of 128
characters, one of the matched pods by chance; nothing is dropped from the trie, and load does not count.
"""

from collections.abc import Mapping, Sequence

from benchmarks.fleet.peers.base import PrefixPeer
from headwater_router.picker.base import Prompt, Target


class ProductionStack(PrefixPeer):
    tokens = 1 << 40

    def best(self, prompt: Prompt, targets: Sequence[Target], cached: Mapping[Target, int]) -> Target:
        most = max(cached.values())
        return self.rng.choice([target for target in targets if cached[target] == most])
