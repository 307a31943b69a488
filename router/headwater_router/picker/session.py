"""A session stays on its endpoint: consistent hashing of a header's value, with bounded loads.

Rendezvous hashing (Thaler and Ravishankar, 1996): each endpoint gets a score, the hash of session and endpoint, and
the highest wins. When an endpoint comes or goes, only the sessions that it wins or held move. The bound (Mirrokni,
Thorup and Zadimoghaddam, 2016) passes over an endpoint that has more than 1.25 times the mean load; the next in order
of score takes the request, the same next every time. A request without the header goes to the least loaded.
"""

import math
from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.least_loaded import LeastLoadedPicker

LOAD_BOUND: Final = 1.25


class SessionPicker(LeastLoadedPicker):
    """Needs nothing but the endpoints' ids, so all replicas of a router agree without talking."""

    def choose(self, prompt: Prompt, targets: Sequence[Target], now: float) -> Target:
        if prompt.session is None:
            return super().choose(prompt, targets, now)
        session = prompt.session.encode("utf-8", "surrogatepass")
        in_flight = 1 + sum(target.load.in_flight for target in targets)
        bound = math.ceil(LOAD_BOUND * in_flight / len(targets))
        # Never empty: not all endpoints can be at more than the mean.
        open_targets = [target for target in targets if target.load.in_flight < bound]
        return max(open_targets, key=lambda target: xxh3_64_intdigest(target.id.encode(), xxh3_64_intdigest(session)))
