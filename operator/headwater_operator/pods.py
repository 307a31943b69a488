"""What a Pod's status says about an engine: whether it answers, and if not, why, in words that help."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from headwater.kubernetes import CONTAINER, LABEL_GROUP, LABEL_REVISION
from headwater_operator.kinds import Object, labels_of, name_of, uid_of

_POD_INDEX: Final = "apps.kubernetes.io/pod-index"

_WAITING: Final = {
    "ErrImagePull": ("ImagePullFailed", "check spec.backend.image and version, and the nodes' access to it"),
    "ImagePullBackOff": ("ImagePullFailed", "check spec.backend.image and version, and the nodes' access to it"),
    "InvalidImageName": ("ImagePullFailed", "check spec.backend.image and version"),
    "ErrImageNeverPull": ("ImagePullFailed", "the image is not on the node, and its pull policy is Never"),
    "CreateContainerConfigError": ("ConfigMissing", "a Secret, ConfigMap or key that the pod refers to is not there"),
    "CreateContainerError": ("ContainerRefused", "the node could not make the container"),
    "RunContainerError": ("ContainerRefused", "the node could not start the container"),
}
"""A container's waiting reason: our reason, and what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that will not pass by itself."""

    reason: str
    """CamelCase, for a condition."""
    message: str


@dataclass(frozen=True, slots=True)
class EnginePod:
    """One pod of an engine."""

    name: str
    uid: str
    revision: str
    group: int | None
    index: int
    """Rank within its group; 0 where there is none."""
    ready: bool
    terminating: bool
    created: datetime
    deleted: datetime | None
    """When it is to be gone at the latest, grace included."""
    unschedulable: str | None
    """The scheduler's message."""
    running: bool
    """The server's container runs, loaded or not."""
    restarts: int
    address: str | None
    problem: Problem | None

    @classmethod
    def of(cls, pod: Object) -> "EnginePod":
        metadata, status, labels = pod["metadata"], pod.get("status") or {}, labels_of(pod)
        conditions = {each["type"]: each for each in status.get("conditions") or []}
        scheduled = conditions.get("PodScheduled", {})
        group = labels.get(LABEL_GROUP)
        containers = status.get("containerStatuses") or []
        engine: dict[str, Any] = next((each for each in containers if each["name"] == CONTAINER), {})
        return cls(
            name=name_of(pod),
            uid=uid_of(pod),
            revision=labels.get(LABEL_REVISION, ""),
            group=int(group) if group is not None else None,
            index=int(labels.get(_POD_INDEX, 0)),
            ready=conditions.get("Ready", {}).get("status") == "True" and "deletionTimestamp" not in metadata,
            terminating="deletionTimestamp" in metadata,
            created=parse_time(metadata["creationTimestamp"]),
            deleted=parse_time(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
            unschedulable=scheduled.get("message", "no node fits")
            if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
            else None,
            running="running" in (engine.get("state") or {}),
            restarts=sum(each.get("restartCount", 0) for each in containers),
            address=status.get("podIP"),
            problem=_problem(status),
        )


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _problem(status: dict[str, Any]) -> Problem | None:
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for each in statuses:
        waiting = (each.get("state") or {}).get("waiting") or {}
        if (known := _WAITING.get(waiting.get("reason", ""))) is not None:
            reason, advice = known
            return Problem(reason, f"container {each['name']}: {waiting.get('message') or waiting['reason']}; {advice}")
        if waiting.get("reason") == "CrashLoopBackOff":
            return _crash(each)
    if status.get("phase") == "Failed":
        return Problem("PodFailed", status.get("message") or status.get("reason") or "the pod failed")
    return None


def _crash(container: dict[str, Any]) -> Problem:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        advice = "raise resources.limits.memory, or lower spec.context.maxTokens"
        return Problem("OutOfMemory", f"container {container['name']} was killed for its memory; {advice}")
    said = f": {ended['message'].strip()}" if ended.get("message") else ""
    return Problem(
        "CrashLoop",
        f"container {container['name']} ends again and again, last with exit code {ended.get('exitCode')}{said}; "
        "kubectl logs --previous shows why",
    )
