"""The controllers of Deployments, StatefulSets, Jobs and volumes, the scheduler and the kubelets: one step at a time.

As much of each as an operator can tell from outside. A step changes nothing once all is as it should be.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any, Final

from headwater.kubernetes import CONTAINER
from headwater_operator.cluster.kinds import Object, annotations_of, labels_of, name_of, uid_of
from tests.operator.fake_api import FakeCluster, written

_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_NO_ROOM: Final = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
_MANAGER: Final = "kube-controller-manager"


class FakeWorkloads:
    def __init__(self, cluster: FakeCluster, slots: int = 1000) -> None:
        self.slots = slots
        """How many engine pods the nodes have room for."""
        self.loads: Callable[[Object], bool] = lambda pod: True
        """Whether a pod that runs gets ready."""
        self.ends: Callable[[Object], bool] = lambda pod: True
        """Whether a pod that is to end has answered all its requests."""
        self.binds = True
        """Whether volumes get storage as soon as a Job wants to use them."""
        self._cluster = cluster
        self._numbers = itertools.count(1)

    def step(self) -> None:
        for each in self._cluster.all("Deployment"):
            if "deletionTimestamp" not in each["metadata"]:
                self._deployment(each)
        for each in self._cluster.all("StatefulSet"):
            self._stateful_set(each)
        for each in self._cluster.all("PersistentVolumeClaim"):
            if self.binds and self._cluster.one("Job", name_of(each)) and each["status"]["phase"] == "Pending":
                self._told(each, {"phase": "Bound"})
        for each in self._cluster.all("PersistentVolumeClaim"):
            if "deletionTimestamp" in each["metadata"]:
                self._cluster.end(each)  # unless somebody still mounts it
        self._cluster.collect_garbage()
        for pod in self._cluster.all("Pod"):
            self._pod(pod)
        for each in self._cluster.all("Deployment"):
            self._tell(each)

    # What a test makes happen

    def finish(self, job: str, condition: str = "Complete", **details: Any) -> None:
        found = self._cluster.one("Job", job)
        assert found is not None, f"there is no Job {job}"
        self._told(found, {"conditions": [{"type": condition, "status": "True", **details}]})

    def restart_container(self, pod: str, said: str = "") -> None:
        found = self._cluster.one("Pod", pod)
        assert found is not None, f"there is no Pod {pod}"
        container = found["status"]["containerStatuses"][0]
        ended = {"exitCode": 1, "message": said, "finishedAt": found["metadata"]["creationTimestamp"]}
        again = {"restartCount": container["restartCount"] + 1, "lastState": {"terminated": ended}}
        self._told(found, {"containerStatuses": [container | again]})

    def pods(self, **labels: str) -> list[Object]:
        """Those that are not about to go, by name."""
        found = [each for each in self._cluster.all("Pod") if "deletionTimestamp" not in each["metadata"]]
        return [each for each in found if {f"headwater.dev/{k}": v for k, v in labels.items()}.items() <= _labels(each)]

    # Deployments

    def _deployment(self, it: Object) -> None:
        digest = hashlib.sha256(json.dumps([uid_of(it), it["spec"]["template"]], sort_keys=True).encode()).hexdigest()[
            :8
        ]
        name = f"{name_of(it)}-{digest}"
        sets = [each for each in self._cluster.all("ReplicaSet") if _owned(each, it)]
        new = next((each for each in sets if name_of(each) == name), None)
        if it["spec"].get("paused"):
            active = [each for each in sets if each["spec"]["replicas"]]
            if len(active) == 1:
                self._scale(active[0], it["spec"]["replicas"])
        else:
            new = new or self._cluster.add(_child(it, "ReplicaSet", name, {"replicas": 0, "template": None}), _MANAGER)
            self._roll(it, new, [each for each in sets if name_of(each) != name])
        for each in self._cluster.all("ReplicaSet"):
            if _owned(each, it):
                self._replica_set(each, it)

    def _roll(self, it: Object, new: Object, old: list[Object]) -> None:
        wanted, pace = it["spec"]["replicas"], it["spec"]["strategy"]["rollingUpdate"]
        counts = {name_of(each): each["spec"]["replicas"] for each in (new, *old)}
        total, mine = sum(counts.values()), counts[name_of(new)]
        if mine > wanted:
            return self._scale(new, wanted)
        room = wanted + pace["maxSurge"] - total
        if mine < wanted and room > 0:
            return self._scale(new, min(mine + room, wanted))
        ready = {name_of(each): sum(map(_ready, self._pods_of(each))) for each in (new, *old)}
        least = wanted - pace["maxUnavailable"]
        may_go = total - least - (mine - ready[name_of(new)])
        for each in old:
            idle = min(max(counts[name_of(each)] - ready[name_of(each)], 0), max(may_go, 0))
            counts[name_of(each)] -= idle
            may_go -= idle
        spare = min(sum(ready.values()) - least, may_go)
        for each in old:
            goes = min(counts[name_of(each)], max(spare, 0))
            spare -= goes
            self._scale(each, counts[name_of(each)] - goes)
        return None

    def _scale(self, replica_set: Object, replicas: int) -> None:
        if replica_set["spec"]["replicas"] != replicas:
            patch = {"spec": {"replicas": replicas}}
            self._cluster.merge("ReplicaSet", name_of(replica_set), patch, manager=_MANAGER)

    def _replica_set(self, it: Object, deployment: Object) -> None:
        if it["spec"]["template"] is None:
            template = deployment["spec"]["template"]
            self._cluster.merge("ReplicaSet", name_of(it), {"spec": {"template": template}}, manager=_MANAGER)
            it["spec"]["template"] = template
        pods, wanted = self._pods_of(it), it["spec"]["replicas"]
        for pod in sorted(pods, key=_first_to_go)[: max(len(pods) - wanted, 0)]:
            self._cluster.end(pod)
        for _ in range(wanted - len(pods)):
            self._new_pod(it, it["spec"]["template"], f"{name_of(it)}-{next(self._numbers):05}", {})

    def _pods_of(self, owner: Object) -> list[Object]:
        return [pod for pod in self.pods() if _owned(pod, owner)]

    def _tell(self, it: Object) -> None:
        pods = [pod for each in self._cluster.all("ReplicaSet") if _owned(each, it) for pod in self._pods_of(each)]
        self._told(it, {"replicas": len(pods), "readyReplicas": sum(map(_ready, pods))})

    # StatefulSets

    def _stateful_set(self, it: Object) -> None:
        there = {name_of(pod) for pod in self._cluster.all("Pod")}  # those of an earlier set of this name as well
        for index in range(it["spec"]["replicas"]):
            name = f"{name_of(it)}-{index}"
            if name not in there:
                self._new_pod(it, it["spec"]["template"], name, {"apps.kubernetes.io/pod-index": str(index)})

    # Pods

    def _new_pod(self, owner: Object, template: Object, name: str, labels: dict[str, str]) -> None:
        pod = _child(owner, "Pod", name, template["spec"])
        pod["metadata"]["labels"] = template["metadata"]["labels"] | labels
        pod["status"] = {"phase": "Pending", "conditions": []}
        self._cluster.add(pod, _MANAGER)

    def _pod(self, pod: Object) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            if "nodeName" not in pod["spec"] or self.ends(pod):
                self._cluster.remove(pod)
            return
        if "nodeName" not in pod["spec"]:
            placed = sum("nodeName" in each["spec"] for each in self._cluster.all("Pod"))
            if placed >= self.slots:
                no_room = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": _NO_ROOM}
                self._told(pod, {"conditions": [no_room]})
                return
            self._cluster.merge("Pod", name_of(pod), {"spec": {"nodeName": "node"}}, manager="scheduler")
        running = (pod.get("status") or {}).get("containerStatuses") or [
            {"name": CONTAINER, "restartCount": 0, "state": {"running": {"startedAt": written(self._cluster.now())}}}
        ]
        conditions = [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": str(self.loads(pod))},
        ]
        address = f"10.1.0.{uid_of(pod).removeprefix('uid-')}"
        status = {"phase": "Running", "podIP": address, "conditions": conditions, "containerStatuses": running}
        self._told(pod, status)

    def _told(self, it: Object, status: Object) -> None:
        self._cluster.merge(it["kind"], name_of(it), {"status": status}, manager=_MANAGER)


def _child(owner: Object, kind: str, name: str, spec: Object) -> Object:
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name_of(owner), "uid": uid_of(owner)}
    metadata = {"name": name, "namespace": "default", "ownerReferences": [reference | {"controller": True}]}
    return {"apiVersion": "v1" if kind == "Pod" else "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _owned(it: Object, owner: Object) -> bool:
    return any(each["uid"] == uid_of(owner) for each in it["metadata"].get("ownerReferences") or [])


def _labels(it: Object) -> Any:
    return labels_of(it).items()


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _first_to_go(pod: Object) -> tuple[bool, bool, int, str]:
    """As ReplicaSets rank them: without a node, not ready, of low cost, then the youngest."""
    youth = str(999_999 - int(name_of(pod).rpartition("-")[2]))
    return "nodeName" in pod["spec"], _ready(pod), int(annotations_of(pod).get(_COST, 0)), youth.zfill(6)
