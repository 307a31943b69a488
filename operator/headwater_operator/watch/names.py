"""Who asks for which name, so that to reconcile one ModelDeployment need not go through all of them.

Whose a name is is decided in `headwater.names`; here is only who has a say in it. An operator that looks after some
namespaces knows of no others, and cannot tell that somebody there had a name first.
"""

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime

import structlog

from headwater import names
from headwater.names import Claimant, Claims
from headwater_operator.cluster.kinds import Key, Object, name_of, namespace_of
from headwater_operator.diagnose.pods import Problem

log = structlog.get_logger(__name__)

_TOLD = 3
"""Names in a message; more would hide what to do."""


class Names:
    """Kept by the store, of which it is an index."""

    def __init__(self) -> None:
        self._claimants: dict[Key, Claimant] = {}
        self._asking: defaultdict[str, set[Key]] = defaultdict(set)

    def put(self, resource: Object) -> None:
        key = Key(namespace_of(resource), name_of(resource))
        self.remove(key)
        claimant = _read(resource)
        if claimant is not None:
            self._claimants[key] = claimant
            for name in _contested(claimant):
                self._asking[name].add(key)

    def remove(self, key: Key) -> None:
        claimant = self._claimants.pop(key, None)
        for name in _contested(claimant) if claimant is not None else ():
            self._asking[name].discard(key)
            if not self._asking[name]:
                del self._asking[name]

    def claimant(self, key: Key) -> Claimant | None:
        """None for one that is about to go, or makes no sense."""
        return self._claimants.get(key)

    def rivals(self, claimant: Claimant | None) -> set[Key]:
        """Those of other namespaces that ask for one of its names."""
        if claimant is None:
            return set()
        return {each for each in self._who_ask(claimant) if each.namespace != claimant.namespace}

    def standing(self, key: Key, now: datetime) -> tuple[list[dict[str, str]], Problem | None]:
        """What is to be in `status.claimedNames`, and what to say where a name is another namespace's."""
        claimant = self._claimants.get(key)
        if claimant is None:
            return [], None
        # Within one namespace nothing is contested, however many serve the name.
        everyone = self._who_ask(claimant) if self.rivals(claimant) else {key}
        claimants = [self._claimants[each] for each in everyone]
        found = names.claims(claimants)
        return names.record(claimant, found, now.strftime("%Y-%m-%dT%H:%M:%SZ")), _taken(claimant, found, claimants)

    def owners(self, key: Key) -> list[tuple[Key, str]]:
        """Who has the names that this one asks for in vain, each with one of them."""
        claimant = self._claimants.get(key)
        rivals = self.rivals(claimant)
        if claimant is None or not rivals:
            return []
        found = names.claims(self._claimants[each] for each in self._who_ask(claimant))
        taken = found.losers.get(claimant.key, {})
        told: dict[Key, str] = {}
        for name, owner in sorted(taken.items()):
            for each in sorted(rivals):
                if each.namespace == owner and name in _contested(self._claimants[each]):
                    told.setdefault(each, name)
        return list(told.items())

    def _who_ask(self, claimant: Claimant) -> set[Key]:
        return {each for name in _contested(claimant) for each in self._asking.get(name, ())}


def _contested(claimant: Claimant) -> list[str]:
    """Its names, also with the namespace before them: an alias of somebody else may look like that."""
    return [each for name in claimant.asked for each in (name, names.qualified(claimant.namespace, name))]


def _read(resource: Object) -> Claimant | None:
    if "deletionTimestamp" in resource["metadata"]:
        return None
    try:
        return names.read(resource)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("resource asks for no name", name=name_of(resource), reason=repr(error))
        return None


def _taken(claimant: Claimant, found: Claims, claimants: Collection[Claimant]) -> Problem | None:
    taken = found.losers.get(claimant.key, {})
    if not taken:
        return None
    told = []
    for name, owner in sorted(taken.items())[:_TOLD]:
        whose = min(each.name for each in claimants if each.namespace == owner and name in _contested(each))
        told.append(f"{name} is of namespace {owner} (ModelDeployment {whose})")
    more = f", and {len(taken) - _TOLD} more" if len(taken) > _TOLD else ""
    own = names.qualified(claimant.namespace, claimant.name)
    return Problem(
        "NameTaken",
        f"{', '.join(told)}{more}, which had it first; clients reach this one as {own}. Choose another name, or have "
        f"the owner name {claimant.namespace} in spec.routing.sharedWith",
    )
