"""KubeAI, `PrefixHash`: consistent hashing with bounded loads.

Source: kubeai.org, concepts/load-balancing: xxHash of the adapter and the first 100 characters of the prompt, in chats
of the user's first message; 256 points an endpoint; an endpoint takes no more than 125 % of the mean load. Here a
conversation's session stands for its first message, the first block for the beginning of any other prompt."""

import math
import random
from bisect import bisect
from collections.abc import Collection

from xxhash import xxh3_64_intdigest

from benchmarks.fleet.peers.base import requests
from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.counting import CountingPicker
from headwater_router.picker.targets import Targets

_FACTOR = 1.25
_POINTS = 256


class KubeAI(CountingPicker):
    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._targets: Targets | None = None
        self._ring: list[tuple[int, Target]] = []

    def choose(self, prompt: Prompt, targets: Targets, excluded: Collection[str]) -> Target:
        if targets is not self._targets:
            self._targets = targets
            self._ring = sorted(
                (
                    (xxh3_64_intdigest(target.id.encode(), point), target)
                    for target in targets.all
                    for point in range(_POINTS)
                ),
                key=lambda each: each[0],
            )
        bound = math.ceil(_FACTOR * (sum(map(requests, targets.all)) + 1) / len(targets.all))
        start = bisect(self._ring, self._key(prompt), key=lambda each: each[0])
        last = None
        for place in range(len(self._ring)):
            target = self._ring[(start + place) % len(self._ring)][1]
            if target.id not in excluded:
                if requests(target) < bound:
                    return target
                last = target
        if last is None:
            raise ValueError("there is no target to pick, or all are excluded")
        return last

    def _key(self, prompt: Prompt) -> int:
        if prompt.session is not None:
            return xxh3_64_intdigest(prompt.session.encode())
        return prompt.text_chain[0] if prompt.text_chain else self.rng.getrandbits(64)
