"""Whose a model's name is, where ModelDeployments of several namespaces ask for the same one.

A name belongs to the namespace that had it first. Otherwise anybody who may create a ModelDeployment somewhere in the
cluster could call it like another team's, and get that team's prompts. Router and operator both go by what stands here:
the router to send requests, the operator to tell those who ask in vain. So it is worked out from the objects alone, and
is the same wherever and in whatever order they are read.

Of those who ask for a name, it belongs to the namespace of the first in this order:

1. Who is named by it. `NAMESPACE/NAME` always means what is in that namespace, so that there is a name for everything.
2. Who has it already: `status.claimedNames`, which the operator writes. The time there decides, not the resource's age:
   an alias that is added to an old resource is a new wish.
3. Who is called so (`metadata.name`), the oldest first.
4. Who has it as an alias or an adapter, the oldest first.

The owner may share its names: `spec.routing.sharedWith`. Within one namespace nothing is contested.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final

Key = tuple[str, str]
"""Namespace and name of a ModelDeployment."""

EVERYBODY: Final = "*"
"""In `sharedWith`: all namespaces."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """A ModelDeployment, as far as names go."""

    namespace: str
    name: str
    others: tuple[str, ...] = ()
    """Its aliases and adapters."""
    created: str = ""
    """RFC 3339, as `metadata.creationTimestamp`. Without one it is younger than all that have one."""
    shared_with: tuple[str, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    """The names that the operator has found to be its own, and since when (RFC 3339)."""

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    @property
    def asked(self) -> tuple[str, ...]:
        """The names that it asks for; the first is its own."""
        return tuple(dict.fromkeys((self.name, *self.others)))


class _Rank(IntEnum):
    QUALIFIED = 0
    HELD = 1
    NAME = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class Claims:
    """What came of it."""

    owners: Mapping[str, str]
    """The namespace of each name that is asked for."""
    shared: Mapping[str, frozenset[str]]
    """The namespaces that the owner of a name shares it with."""
    losers: Mapping[Key, Mapping[str, str]]
    """ModelDeployments that do not get all they ask for: of each name the namespace that it belongs to."""

    def serves(self, namespace: str, name: str) -> bool:
        """Whether ModelDeployments of a namespace may serve a name; one that no resource asks for is free to all."""
        owner = self.owners.get(name, namespace)
        shared = self.shared.get(name, frozenset())
        return owner == namespace or namespace in shared or EVERYBODY in shared


def qualified(namespace: str, name: str) -> str:
    """The name that always works."""
    return f"{namespace}/{name}"


def read(each: Mapping[str, Any]) -> Claimant:
    """From a ModelDeployment as the API server sends it.

    Raises KeyError, TypeError, ValueError or AttributeError for what is none.
    """
    metadata, spec, status = each["metadata"], each["spec"], each.get("status") or {}
    adapters = (adapter["name"] for adapter in spec.get("adapters") or ())
    others = (*(spec["model"].get("aliases") or ()), *adapters)
    shared_with = (spec.get("routing") or {}).get("sharedWith") or []
    if not isinstance(shared_with, list) or not all(isinstance(name, str) for name in (*others, *shared_with)):
        raise TypeError("a name must be text")
    return Claimant(
        metadata.get("namespace", ""),
        metadata["name"],
        others,
        metadata.get("creationTimestamp") or "",
        tuple(shared_with),
        {claim["name"]: claim["since"] for claim in status.get("claimedNames") or ()},
    )


def claims(claimants: Iterable[Claimant]) -> Claims:
    """Whose each name is. The order of the claimants plays no part."""
    everyone = list(claimants)
    best: dict[str, tuple[_Rank, float, str]] = {}
    for each in everyone:
        for name, standing in _standings(each):
            best[name] = min(best.get(name, standing), standing)
    owners = {name: namespace for name, (_, _, namespace) in best.items()}
    shared: dict[str, frozenset[str]] = {}
    for each in everyone:
        for name in each.asked if each.shared_with else ():
            if owners[name] == each.namespace:
                shared[name] = shared.get(name, frozenset()) | frozenset(each.shared_with)
    found = Claims(owners, shared, losers := {})
    for each in everyone:
        taken = {name: owners[name] for name in each.asked if not found.serves(each.namespace, name)}
        if taken:
            losers[each.key] = taken
    return found


def record(claimant: Claimant, found: Claims, now: str) -> list[dict[str, str]]:
    """`status.claimedNames` of the ModelDeployment, for the operator to write: what is its namespace's own from now on.

    A name that is only shared with it is not recorded: it goes when the owner shares it no more.
    """
    own = [name for name in claimant.asked if found.owners[name] == claimant.namespace]
    return [{"name": name, "since": claimant.held.get(name, now)} for name in own]


def _standings(each: Claimant) -> Iterable[tuple[str, tuple[_Rank, float, str]]]:
    """How well it stands for each of the names that may be sent for it: the least of all gets it."""
    created = _moment(each.created)
    for name in each.asked:
        yield qualified(each.namespace, name), (_Rank.QUALIFIED, 0.0, each.namespace)
        if name in each.held:
            yield name, (_Rank.HELD, _moment(each.held[name]), each.namespace)
        else:
            yield name, (_Rank.NAME if name == each.name else _Rank.OTHER, created, each.namespace)


def _moment(text: str) -> float:
    """Seconds since the epoch. What is no time is later than all that is one."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, OverflowError):
        return math.inf
