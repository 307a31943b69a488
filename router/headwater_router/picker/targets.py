"""The endpoints that may answer, and where among many of them to look for one that has room.

To look at all would cost with 512 endpoints sixty times what it costs with eight, and most of it for endpoints that no
request will go to. So of more than a few, a policy compares those where something has ended lately, which are as a rule
those with room, and some by chance, which find what nobody told: a newcomer, or a gauge that fell. With as much as two
by chance the longest queue is exponentially shorter than with one (Mitzenmacher, 2001), and with a memory of the idle
it is shorter again (Lu et al., 2011).

Where the prompt's beginning has holders, these are compared, and beside them the one that eased last and two by chance.
Those win only where the holders are busy, and are holders themselves from then on. More of them find no better place:
they only tempt a hot prompt to be computed on too many.
"""

import random
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from headwater_router.picker.base import Target

COMPARED: Final = 8
"""Up to so many are all compared; of more, so many, where the prompt has no holders."""
_EASED: Final = 4
"""Of those where something has ended."""
_CHANCE: Final = 2
"""By chance; without holders, at least."""


class Targets:
    """Make one when the endpoints of a model change, and pass the same one until they change again: what is worked out
    for them is kept in it."""

    __slots__ = ("_eased", "all", "deployment", "many", "view")

    def __init__(self, targets: Iterable[Target], deployment: str = "") -> None:
        """`deployment`: whose they are; what is learned of one is then told of the others, too."""
        self.all: tuple[Target, ...] = tuple(targets)
        self.many = len(self.all) > COMPARED
        """Not all are compared."""
        self.deployment = deployment
        self.view: object = None
        """What the policy in use has worked out for just these targets. Another policy makes its own."""
        self._eased: deque[Target] = deque(maxlen=_EASED)

    @staticmethod
    def of(targets: "Targets | Sequence[Target]") -> "Targets":
        return targets if isinstance(targets, Targets) else Targets(targets)

    def some(self, rng: random.Random, excluded: Collection[str], holders: Sequence[Target] = ()) -> Sequence[Target]:
        """Those to compare, see the module. `holders`: of the prompt's beginning, as many as are worth a look.

        `excluded`: ids that must not be among them; best a set. Raises ValueError if nobody is left.
        """
        everyone, eased = self.all, self._eased
        count = len(everyone)
        if count <= COMPARED or 2 * len(excluded) >= count:
            return self._allowed(excluded)
        if holders:
            found = dict.fromkeys(holders)
            if eased:
                found[eased[-1]] = None
            by_chance = _CHANCE
        else:
            found = dict.fromkeys(eased)
            by_chance = max(COMPARED - len(found), _CHANCE)
        for _ in range(by_chance):
            found[one_of(rng, everyone)] = None
        if not excluded:
            return list(found)
        return [target for target in found if target.id not in excluded] or self._allowed(excluded)

    def eased(self, target: Target) -> None:
        """Something ended there."""
        self._eased.append(target)

    def _allowed(self, excluded: Collection[str]) -> Sequence[Target]:
        allowed = [target for target in self.all if target.id not in excluded] if excluded else self.all
        if not allowed:
            raise ValueError("there is no target to pick, or all are excluded")
        return allowed


def one_of(rng: random.Random, targets: Sequence[Target]) -> Target:
    """By chance; three times as quick as `choice`."""
    return targets[int(rng.random() * len(targets))]
