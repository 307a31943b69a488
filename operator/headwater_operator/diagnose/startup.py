"""Why a pod that has a node does not start, a workload has no pods, a volume no storage: only Events say.

So they are asked for once that has lasted a minute: to watch all Events of a cluster would cost more than all else. A
pod whose image is large takes longer than a minute as well: then one list in half a minute finds nothing wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import EVENT, Object, name_of, uid_of
from headwater_operator.diagnose.pods import EnginePod, Problem, parse_time

log = structlog.get_logger(__name__)

PATIENCE: Final = 60.0
"""Seconds after which it is worth asking: most take a few."""
_AGAIN: Final = 30.0
_AT_ONCE: Final = 3
"""So many of a resource's are asked for in that time, one after the other: a thousand pods may wait for one Secret."""
_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class _HeldUp:
    reason: str
    begin: str
    """Before the words of the Event."""
    advice: str = ""


_VOLUME_PENDING: Final = _HeldUp(
    "VolumePending",
    "{} has no storage",
    "it has the class that was asked for when it was made: set spec.weights.storageClassName, or the operator's "
    "--weights-storage-class, to one that gives it, then delete the PersistentVolumeClaim, and it is made anew",
)
HELD_UP: Final[Mapping[str, _HeldUp]] = {
    "FailedMount": _HeldUp(
        "FailedMount",
        "{} does not start",
        "the Secrets, ConfigMaps and volumes that it mounts must be there, and its node must reach them",
    ),
    "FailedAttachVolume": _HeldUp(
        "FailedAttachVolume", "{} does not start", "a volume of one node cannot be on another one at the same time"
    ),
    "FailedCreatePodSandBox": _HeldUp(
        "FailedCreatePodSandBox", "{} does not start", "the node cannot make pods, which is for who runs the cluster"
    ),
    "FailedCreate": _HeldUp("PodsRefused", "the API server takes no pods of {}"),
    "FailedBinding": _VOLUME_PENDING,
    "ProvisioningFailed": _VOLUME_PENDING,
    "VolumeMismatch": _VOLUME_PENDING,
}
"""An Event's reason: what becomes the condition, and what helps."""
_FURTHER: Final = frozenset(
    {"SuccessfulAttachVolume", "Pulling", "Pulled", "Created", "Started"}  # of pods
    | {"SuccessfulCreate"}  # of workloads
    | {"WaitForFirstConsumer", "WaitForPodScheduled", "Provisioning", "ExternalProvisioning", "ProvisioningSucceeded"}
)
"""What says that whatever stood in the way before has passed, or that nothing does but time."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that is on its way."""

    uid: str
    what: str
    """Kind and name."""
    since: datetime
    advice: str = ""
    """What helps, where it is something else than commonly."""


def pods_without_containers(pods: Sequence[EnginePod]) -> list[Waiting]:
    return [
        Waiting(pod.uid, f"pod {pod.name}", pod.waits_since)
        for pod in pods
        if pod.waits_since is not None and not pod.terminating
    ]


def waiting(manifest: Object) -> Waiting:
    """From its making on."""
    since = parse_time(manifest["metadata"]["creationTimestamp"])
    return Waiting(uid_of(manifest), f"{manifest['kind']} {name_of(manifest)}", since)


class Startup:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._answers: dict[str, tuple[datetime, Problem | None]] = {}
        """By UID, when Events were read and what they said. Who was asked for longest ago comes first."""

    async def problem(
        self, namespace: str, those: Sequence[Waiting], now: datetime, patience: float = PATIENCE
    ) -> tuple[Problem | None, float | None]:
        """What holds up the first of these that something does, and in how many seconds to ask again."""
        ages = {each: (now - each.since).total_seconds() for each in those}
        late = sorted((each for each in those if ages[each] >= patience), key=lambda each: (each.since, each.what))
        await self._ask(namespace, late, now)
        answers = (self._answers.get(each.uid, (now, None))[1] for each in late)
        again = [patience - age for age in ages.values() if age < patience] + ([_AGAIN] if late else [])
        return next(filter(None, answers), None), min(again, default=None)

    async def _ask(self, namespace: str, late: Sequence[Waiting], now: datetime) -> None:
        """Those whose answer is the oldest, so that each one has its turn."""
        asked = {each: self._answers[each.uid][0] for each in late if each.uid in self._answers}
        fresh = [each for each, at in asked.items() if (now - at).total_seconds() < _AGAIN]
        due = (each for each in late if each not in fresh)
        turn = sorted(due, key=lambda each: (each in asked, asked.get(each, each.since)))
        for each in turn[: max(_AT_ONCE - len(fresh), 0)]:
            self._answers.pop(each.uid, None)
            self._answers[each.uid] = now, told(each, await self._events(namespace, each))
            if len(self._answers) > _REMEMBERED:
                del self._answers[next(iter(self._answers))]

    async def _events(self, namespace: str, about: Waiting) -> Sequence[Object]:
        try:
            return (await self._cluster.list(EVENT, namespace, fields=f"involvedObject.uid={about.uid}"))[0]
        except ApiError as error:
            log.warning("events cannot be read", object=about.what, reason=str(error))
            return []


def told(about: Waiting, events: Sequence[Object]) -> Problem | None:
    """By the last one that says how far it is."""
    speaking = [each for each in events if each.get("reason") in HELD_UP or each.get("reason") in _FURTHER]
    last = max(speaking, key=lambda each: (_seen(each), each["reason"] in HELD_UP), default=None)
    if last is None or (held_up := HELD_UP.get(last["reason"])) is None:
        return None
    message = " ".join(str(last.get("message") or "no reason given").split())
    advice = about.advice or held_up.advice
    said = f"{held_up.begin.format(about.what)}: {message}"
    return Problem(held_up.reason, f"{said}; {advice}" if advice else said)


def _seen(event: Object) -> datetime:
    series = (event.get("series") or {}).get("lastObservedTime")
    return parse_time(
        series or event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    )
