"""The endpoint with the fewest requests in flight, of several at random."""

from collections.abc import Sequence

from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.counting import CountingPicker


class LeastLoadedPicker(CountingPicker):
    """Counts only what this router sent: gauges of the engines are seconds old, and a burst would follow them."""

    def choose(self, prompt: Prompt, targets: Sequence[Target], now: float) -> Target:
        fewest = min(target.load.in_flight for target in targets)
        return self.rng.choice([target for target in targets if target.load.in_flight == fewest])
