"""Objects as the API server writes them, with no more in them than the operator reads."""

from datetime import UTC, datetime, timedelta
from typing import Any

from headwater.kubernetes import (
    CONTAINER,
    LABEL_COMPONENT,
    LABEL_DEPLOYMENT,
    LABEL_GROUP,
    LABEL_MANAGED_BY,
    LABEL_REVISION,
    MANAGED_BY,
)
from headwater_operator.cluster.kinds import Object

NOW = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)


def written(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def pod(
    name: str = "m-5d4f-abcde",
    *,
    revision: str = "new",
    ready: bool = False,
    ready_since: datetime | None = None,
    unschedulable: str | None = None,
    created: datetime = NOW,
    deleted: datetime | None = None,
    uid: str | None = None,
    group: int | None = None,
    index: int | None = None,
    owner: str | None = None,
    containers: list[Object] | None = None,
    init_containers: list[Object] | None = None,
    **status: Any,
) -> Object:
    """`ready_since`: if not from the beginning. `deleted`: its deletionTimestamp. `owner`: UID of its controller."""
    labels = {
        LABEL_DEPLOYMENT: "m",
        LABEL_COMPONENT: "engine",
        LABEL_REVISION: revision,
        LABEL_MANAGED_BY: MANAGED_BY,
        **({LABEL_GROUP: str(group)} if group is not None else {}),
        **({"apps.kubernetes.io/pod-index": str(index)} if index is not None else {}),
    }
    metadata: Object = {
        "namespace": "default",
        "name": name,
        "uid": uid or f"uid-{name}",
        "resourceVersion": "1",
        "creationTimestamp": written(created),
        "labels": labels,
    }
    if deleted is not None:
        metadata["deletionTimestamp"] = written(deleted)
    if owner is not None:
        metadata["ownerReferences"] = [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "?", "uid": owner}]
    scheduled: Object = {"type": "PodScheduled", "status": "True"}
    if unschedulable is not None:
        scheduled |= {"status": "False", "reason": "Unschedulable", "message": unschedulable}
    answers = {"type": "Ready", "status": str(ready), "lastTransitionTime": written(ready_since or created)}
    conditions = [scheduled, answers]
    told = {"phase": "Running", "conditions": conditions, "containerStatuses": containers or []}
    if init_containers is not None:
        told["initContainerStatuses"] = init_containers
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": told | status}


def container(
    name: str = CONTAINER, *, restarts: int = 0, last: Object | None = None, **state: Object | None
) -> Object:
    """`state`: one of waiting, running, terminated. `last`: how it ended the time before."""
    told: Object = {"name": name, "restartCount": restarts, "state": state}
    if last is not None:
        told["lastState"] = {"terminated": last}
    return told


def deployment(replicas: int | None = 2, *, surge: int | str = 1, **status: Any) -> Object:
    spec: Object = {
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": int(surge == 0)}}
    }
    if replicas is not None:
        spec["replicas"] = replicas
    metadata = {
        "namespace": "default",
        "name": "m",
        "uid": "uid-m",
        "resourceVersion": "1",
        "labels": {LABEL_DEPLOYMENT: "m"},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec, "status": status}


def stateful_set(
    revision: str,
    number: int,
    *,
    size: int = 2,
    uid: str | None = None,
    created: datetime = NOW,
    annotations: dict[str, str] | None = None,
) -> Object:
    """That of one group, as the operator names it."""
    name = f"m-{revision}-{number}"
    metadata: Object = {
        "namespace": "default",
        "name": name,
        "uid": uid or f"uid-{name}",
        "resourceVersion": "1",
        "creationTimestamp": written(created),
        "labels": {LABEL_DEPLOYMENT: "m", LABEL_REVISION: revision, LABEL_GROUP: str(number)},
        "annotations": dict(annotations or {}),
    }
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": {"replicas": size}}
