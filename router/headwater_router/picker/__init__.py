"""The scheduling policies: which endpoint a request goes to. Each is the file of its name beside this one."""

import random
from collections.abc import Callable
from importlib import import_module
from typing import Final, get_args

from headwater.resource import RoutingPolicy
from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker.base import Picker
from headwater_router.picker.objective import Objective

POLICIES: Final[tuple[str, ...]] = get_args(RoutingPolicy)
_MAKERS: Final[dict[str, Callable[[PrefixIndex, random.Random, Objective], Picker]]] = {
    policy: import_module(f"{__name__}.{policy}").make for policy in POLICIES
}


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
    if policy not in _MAKERS:
        raise ValueError(f"policy: found {policy!r}, allowed are {', '.join(POLICIES)}")
    return _MAKERS[policy](index if index is not None else PrefixIndex(), rng or random.Random(), objective)
