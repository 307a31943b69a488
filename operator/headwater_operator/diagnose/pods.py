"""What a Pod's status says about an engine: whether it answers, and if not, why, in words that help."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from headwater.kubernetes import BUILDER, CONTAINER, FETCHER, LABEL_GROUP, LABEL_REVISION
from headwater_operator.cluster.kinds import Object, labels_of, name_of, uid_of

_POD_INDEX: Final = "apps.kubernetes.io/pod-index"

_CROWDED: Final = ("Insufficient", "Too many pods", "free ports", "anti-affinity", "cannot allocate all claims")
"""Words of the scheduler that the end of another pod would take back. Not among them: a selector that no node fits."""

_HELPLESS: Final = ("Preemption is not helpful", "No preemption victims")
"""What it says of nodes where no end of another pod would help, as they are too small; and of all others."""

STEADY: Final = timedelta(minutes=10)
"""For so long nothing must have ended for a crash loop to be over: one that runs for minutes between looks healthy."""
_NO_CLAIM: Final = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
"""The scheduler's words."""

_WAITING: Final = {
    "ErrImagePull": ("ImagePullFailed", "check {image}, and the nodes' access to it"),
    "ImagePullBackOff": ("ImagePullFailed", "check {image}, and the nodes' access to it"),
    "InvalidImageName": ("ImagePullFailed", "check {image}"),
    "ErrImageNeverPull": ("ImagePullFailed", "the image is not on the node, and its pull policy is Never"),
    "CreateContainerConfigError": ("ConfigMissing", "a Secret, ConfigMap or key that the pod refers to is not there"),
    "CreateContainerError": ("ContainerRefused", "the node could not make the container"),
    "RunContainerError": ("ContainerRefused", "the node could not start the container"),
}
"""A container's waiting reason: our reason, and what to do."""
_IMAGES: Final = {
    CONTAINER: "spec.backend.image and version",
    BUILDER: "spec.backend.image and version",
    FETCHER: "the operator's --weights-image, or where that is not set its --engine-image",
}
"""Where the image of a container is from. All other containers are the template's."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that will not pass by itself."""

    reason: str
    """CamelCase, for a condition."""
    message: str


@dataclass(frozen=True, slots=True)
class Death:
    """The last of several of a container."""

    at: datetime
    problem: Problem


@dataclass(frozen=True, slots=True)
class EnginePod:
    """One pod of an engine."""

    name: str
    uid: str
    owner: str
    """UID of what made it."""
    revision: str
    group: int | None
    index: int
    """Rank within its group; 0 where there is none."""
    ready: bool
    ready_since: datetime | None
    terminating: bool
    created: datetime
    deleted: datetime | None
    """When it is to be gone at the latest, grace included."""
    unschedulable: str | None
    """The scheduler's message."""
    node: str | None
    """Where it is to run."""
    running: bool
    """The server's container runs, loaded or not."""
    restarts: int
    address: str | None
    problem: Problem | None
    begun: bool
    """One of its containers has."""
    waits_since: datetime | None
    """Since when it has a node, where none has."""
    died: "Death | None"
    ended: str | None
    """How the last container of it that ended did, in words."""

    def unsteady(self, now: datetime) -> float:
        """Seconds for which a crash loop is still to be told of, though it runs at this moment."""
        return max((self.died.at + STEADY - now).total_seconds(), 0.0) if self.died else 0.0

    @property
    def lacks_room(self) -> bool:
        """Whether it waits for what other pods have."""
        said = self.unschedulable or ""
        helpless, others = (words in said for words in _HELPLESS)
        return any(word in said for word in _CROWDED) and (others or not helpless)

    @classmethod
    def of(cls, pod: Object) -> "EnginePod":
        metadata, status, labels = pod["metadata"], pod.get("status") or {}, labels_of(pod)
        conditions = {each["type"]: each for each in status.get("conditions") or []}
        scheduled = conditions.get("PodScheduled", {})
        owners = metadata.get("ownerReferences") or []
        containers = status.get("containerStatuses") or []
        engine: dict[str, Any] = next((each for each in containers if each["name"] == CONTAINER), {})
        told = conditions.get("Ready", {})
        ready = told.get("status") == "True" and "deletionTimestamp" not in metadata
        begun = _begun(status)
        return cls(
            name=name_of(pod),
            uid=uid_of(pod),
            owner=owners[0]["uid"] if owners else "",
            revision=labels.get(LABEL_REVISION, ""),
            group=_number(labels.get(LABEL_GROUP)),
            index=_number(labels.get(_POD_INDEX)) or 0,
            ready=ready,
            ready_since=parse_time(told.get("lastTransitionTime") or metadata["creationTimestamp"]) if ready else None,
            terminating="deletionTimestamp" in metadata,
            created=parse_time(metadata["creationTimestamp"]),
            deleted=parse_time(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
            unschedulable=scheduled.get("message", "no node fits")
            if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
            else None,
            node=(pod.get("spec") or {}).get("nodeName"),
            running="running" in (engine.get("state") or {}),
            restarts=sum(each.get("restartCount", 0) for each in containers),
            address=status.get("podIP"),
            problem=_problem(status) or _missing_claim(scheduled),
            begun=begun,
            waits_since=None if begun else _placed_since(metadata, scheduled),
            died=_last_death(containers),
            ended=_last_words(containers),
        )


def _number(label: str | None) -> int | None:
    """None where it is none: whoever may change a pod may write anything there."""
    return int(label) if label is not None and re.fullmatch(r"[0-9]{1,9}", label) else None


def finished(pod: Object) -> bool:
    """Whether it has ended for good, as when it was evicted. It stays to be read, and its controller makes another."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _problem(status: dict[str, Any]) -> Problem | None:
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for each in statuses:
        waiting = (each.get("state") or {}).get("waiting") or {}
        if (known := _WAITING.get(waiting.get("reason", ""))) is not None:
            reason, advice = known[0], known[1].format(image=_IMAGES.get(each["name"], "its image in spec.template"))
            return Problem(reason, f"container {each['name']}: {waiting.get('message') or waiting['reason']}; {advice}")
        if waiting.get("reason") == "CrashLoopBackOff":
            return _crash(each)
    return None


def _missing_claim(scheduled: dict[str, Any]) -> Problem | None:
    found = _NO_CLAIM.search(scheduled.get("message") or "") if scheduled.get("status") == "False" else None
    if found is None:
        return None
    advice = "create it, or mend its name in spec.model.source or spec.template"
    return Problem("VolumeMissing", f"there is no PersistentVolumeClaim {found[1]} in this namespace; {advice}")


def _last_words(containers: Sequence[dict[str, Any]]) -> str | None:
    ends = [ended for each in containers if (ended := (each.get("lastState") or {}).get("terminated"))]
    if not ends:
        return None
    return _words(max(ends, key=lambda ended: str(ended.get("finishedAt") or "")))


def _words(ended: dict[str, Any]) -> str:
    if ended.get("reason") == "OOMKilled":
        return "killed for its memory"
    said = f": {ended['message'].strip()}" if ended.get("message") else ""
    return f"exit code {ended.get('exitCode')}{said}"


def _crash(container: dict[str, Any]) -> Problem:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    times = f"has ended {count} times" if (count := container.get("restartCount", 0)) > 1 else "ends again and again"
    if ended.get("reason") == "OOMKilled":
        advice = "raise resources.limits.memory, or lower spec.context.maxTokens"
        return Problem("OutOfMemory", f"container {container['name']} {times}, last killed for its memory; {advice}")
    return Problem(
        "CrashLoop",
        f"container {container['name']} {times}, last with {_words(ended)}; kubectl logs --previous shows why",
    )


def _last_death(containers: Sequence[dict[str, Any]]) -> Death | None:
    """One may happen to everybody."""
    deaths = []
    for each in containers:
        ended = (each.get("lastState") or {}).get("terminated") or {}
        if each.get("restartCount", 0) > 1 and ended.get("finishedAt"):
            deaths.append(Death(parse_time(ended["finishedAt"]), _crash(each)))
    return max(deaths, key=lambda death: death.at, default=None)


def _begun(status: dict[str, Any]) -> bool:
    return any(
        each.get("restartCount") or (each.get("state") or {}).keys() & {"running", "terminated"}
        for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    )


def _placed_since(metadata: Object, scheduled: dict[str, Any]) -> datetime | None:
    if scheduled.get("status") != "True":
        return None
    return parse_time(scheduled.get("lastTransitionTime") or metadata["creationTimestamp"])
