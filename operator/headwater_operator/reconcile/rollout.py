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
from datetime import UTC, datetime
from typing import Final, Literal

from headwater_operator.cluster.kinds import Key, Object
from headwater_operator.diagnose.pods import EnginePod

Strategy = Literal["Surge", "Replace"]

PATIENCE: Final = 10.0
"""Seconds that a pod may be unschedulable before that counts: an autoscaler of nodes, or a pod that is just ending,
would otherwise be taken for a lack of room. It begins when nothing is ending any more."""
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Choice:
    strategy: Strategy
    reason: str
    """CamelCase, for a condition."""
    message: str
    requeue_after: float | None = None
    """Seconds until time alone may change it."""


class Endings:
    """Remembers since when none of a ModelDeployment's pods is ending.

    The scheduler takes a moment to give away what a pod leaves, and afterwards the cluster does not tell when it ended.
    """

    def __init__(self) -> None:
        self._quiet_since: dict[Key, datetime] = {}

    def quiet_since(self, key: Key, ending: Sequence[EnginePod], now: datetime) -> datetime | None:
        """To be asked each time. None: something is ending now."""
        if ending:
            self.forget(key)
            return None
        return self._quiet_since.setdefault(key, now)

    def forget(self, key: Key) -> None:
        self._quiet_since.pop(key, None)


def choose(
    wanted: str,
    workload: Object | None,
    pods: Sequence[EnginePod],
    revision: str,
    now: datetime,
    quiet_since: datetime | None = None,
) -> Choice:
    """`wanted`: spec.rollout.strategy. `workload`: the Deployment as it is. `quiet_since`: see Endings."""
    if wanted == "Surge":
        return Choice("Surge", "Surge", "a new replica starts before an old one stops, as spec.rollout.strategy says")
    if wanted == "Replace":
        return Choice(
            "Replace", "Replace", "an old replica stops before a new one starts, as spec.rollout.strategy says"
        )
    if workload is not None and rolling(workload, pods, revision):
        if _strategy_of(workload) == "Replace":
            return _no_room(workload, pods, revision)
        if any(pod.revision != revision and not pod.terminating for pod in pods):
            lack, requeue_after = lack_of_room(unplaced(pods, revision), ending(pods, now), now, quiet_since)
            return _no_room(workload, pods, revision) if lack else _room(requeue_after)
    return _room()


def _room(requeue_after: float | None = None) -> Choice:
    return Choice("Surge", "Surge", "there is room for a new replica beside the old ones", requeue_after)


def _no_room(workload: Object, pods: Sequence[EnginePod], revision: str) -> Choice:
    said = next((pod.unschedulable for pod in unplaced(pods, revision)), None)
    detail = f" ({said})" if said else ""
    message = f"an old replica stops before a new one starts: there was no room for one more{detail}"
    return Choice("Replace", "NoRoomForSurge", message)


def unplaced(pods: Sequence[EnginePod], revision: str) -> list[EnginePod]:
    """Pods of the current revision that no node has room for."""
    return [pod for pod in pods if pod.revision == revision and pod.lacks_room and not pod.terminating]


def ending(pods: Sequence[EnginePod], now: datetime) -> list[EnginePod]:
    """Pods that are about to leave their room to others. Past its grace, one may stay for ever: its node is lost."""
    return [pod for pod in pods if pod.deleted is not None and pod.deleted > now]


def lack_of_room(
    waiting: Sequence[EnginePod], ending: Sequence[EnginePod], now: datetime, quiet_since: datetime | None
) -> tuple[str | None, float | None]:
    """What the scheduler says, once pods have waited for long enough; else the seconds until time may change that."""
    if not waiting:
        return None, None
    if ending:
        ends = [pod.deleted for pod in ending if pod.deleted is not None]
        return None, (max(ends) - now).total_seconds() if ends else None
    since = max(min(pod.created for pod in waiting), quiet_since or _LONG_AGO)
    left = PATIENCE - (now - since).total_seconds()
    return (waiting[0].unschedulable, None) if left <= 0 else (None, left)


def rolling(workload: Object, pods: Sequence[EnginePod], revision: str) -> bool:
    """Whether pods of an earlier revision are still there, or ones of the current still to come."""
    wanted = workload["spec"].get("replicas", 1)
    current = sum(pod.ready and pod.revision == revision for pod in pods)
    return current < wanted or any(pod.revision != revision for pod in pods)


def _strategy_of(workload: Object) -> Strategy:
    surge = ((workload["spec"].get("strategy") or {}).get("rollingUpdate") or {}).get("maxSurge")
    return "Replace" if surge == 0 else "Surge"
