"""llm-d's endpoint picker with its default profile.

Source: llm-d.ai/docs, "Request Scheduler" and "Prefix-cache aware routing"; default weights queue 2, KV cache
utilization 2, prefix cache 3; the highest weighted sum of scores from 0 to 1 wins, of several one by chance. Its
approximate index keeps 31,250 blocks of 64 tokens for each pod. Queue and KV are gauges, read every 50 ms."""

from collections.abc import Mapping, Sequence

from benchmarks.fleet.peers.base import PrefixPeer
from headwater_router.picker.base import Prompt, Target


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
