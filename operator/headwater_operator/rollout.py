"""How a new revision takes the place of the old one.

Pods that are a replica each belong to a Deployment, and its controller does the work: it goes on when the operator is
away, and takes a revert in its middle as just another target. Ours is the choice between its two ways:

    Surge    one more replica first, and an old one goes when it is ready: nothing is missing at any time
    Replace  an old one goes first, and the new one takes its place: for when there is no room for both

`Auto` begins with Surge, and goes over to Replace when the scheduler finds no room for the surge. It stays with that
until the rollout is over; what it is doing can be read off the Deployment itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from headwater_operator.kinds import Object
from headwater_operator.pods import EnginePod

Strategy = Literal["Surge", "Replace"]

PATIENCE: Final = 10.0
"""Seconds that a pod may be unschedulable before that counts: an autoscaler of nodes, or a pod that is just ending,
would otherwise be taken for a lack of room."""


@dataclass(frozen=True, slots=True)
class Choice:
    strategy: Strategy
    reason: str
    """CamelCase, for a condition."""
    message: str
    look_again: float | None = None
    """Seconds until time alone may change it."""


def choose(wanted: str, workload: Object | None, pods: Sequence[EnginePod], revision: str, now: datetime) -> Choice:
    """`wanted`: spec.rollout.strategy. `workload`: the Deployment as it is."""
    if wanted == "Surge":
        return Choice("Surge", "Surge", "a new replica starts before an old one stops, as spec.rollout.strategy says")
    if wanted == "Replace":
        return Choice(
            "Replace", "Replace", "an old replica stops before a new one starts, as spec.rollout.strategy says"
        )
    if workload is not None and rolling(workload, pods, revision):
        if _strategy_of(workload) == "Replace":
            return _no_room(workload, pods, revision)
        waiting = unplaced(pods, revision)
        if waiting and any(pod.revision != revision and not pod.terminating for pod in pods):
            waited = max((now - pod.created).total_seconds() for pod in waiting)
            if waited >= PATIENCE:
                return _no_room(workload, pods, revision)
            return _room(look_again=PATIENCE - waited)
    return _room()


def _room(look_again: float | None = None) -> Choice:
    return Choice("Surge", "Surge", "there is room for a new replica beside the old ones", look_again)


def _no_room(workload: Object, pods: Sequence[EnginePod], revision: str) -> Choice:
    said = next((pod.unschedulable for pod in unplaced(pods, revision)), None)
    detail = f" ({said})" if said else ""
    message = f"an old replica stops before a new one starts: there was no room for one more{detail}"
    return Choice("Replace", "NoRoomForSurge", message)


def unplaced(pods: Sequence[EnginePod], revision: str) -> list[EnginePod]:
    """Pods of the current revision that no node has room for."""
    return [pod for pod in pods if pod.revision == revision and pod.unschedulable and not pod.terminating]


def rolling(workload: Object, pods: Sequence[EnginePod], revision: str) -> bool:
    """Whether pods of an earlier revision are still there, or ones of the current still to come."""
    wanted = workload["spec"].get("replicas", 1)
    current = sum(pod.ready and pod.revision == revision for pod in pods)
    return current < wanted or any(pod.revision != revision for pod in pods)


def _strategy_of(workload: Object) -> Strategy:
    surge = ((workload["spec"].get("strategy") or {}).get("rollingUpdate") or {}).get("maxSurge")
    return "Replace" if surge == 0 else "Surge"
