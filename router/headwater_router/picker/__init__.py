"""The scheduling policies: which endpoint a request goes to. `make` knows them by name; each is one file."""

import random

from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker.base import Picker
from headwater_router.picker.least_loaded import LeastLoadedPicker
from headwater_router.picker.objective import Objective
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.picker.round_robin import RoundRobinPicker
from headwater_router.picker.session import SessionPicker

POLICIES = ("prefix", "round_robin", "least_loaded", "session")


def make(
    policy: str,
    index: PrefixIndex | None = None,
    rng: random.Random | None = None,
    objective: Objective = Objective.LATENCY,
) -> Picker:
    """The policy of that name. Raises ValueError if there is none.

    `index`: who holds which prefix, shared with whoever feeds it KV events; only `prefix` looks at it.
    `objective`: of `prefix`; the others have none.
    `rng`: breaks ties; pass a seeded one for decisions that repeat.
    """
    rng = rng or random.Random()
    match policy:
        case "prefix":
            return PrefixPicker(index if index is not None else PrefixIndex(), rng, objective)
        case "round_robin":
            return RoundRobinPicker(rng)
        case "least_loaded":
            return LeastLoadedPicker(rng)
        case "session":
            return SessionPicker(rng)
        case _:
            raise ValueError(f"policy: found {policy!r}, allowed are {', '.join(POLICIES)}")
