"""Nodes that kwok simulates, with GPUs: pods on them start at once and do nothing."""

import json
import os
from collections.abc import Sequence
from typing import Any

from e2e.harness import Object, apply, condition, eventually, find, kubectl

GPUS = 8
OURS = {"type": "kwok", "e2e-worker": os.environ.get("PYTEST_XDIST_WORKER", "only")}
"""Labels of the nodes that this process makes: each counts on having them for itself."""
SELECTOR = ",".join(f"{name}={value}" for name, value in OURS.items())
SIMULATED: Object = {
    "spec": {
        "nodeSelector": OURS,
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}],
    }
}
"""For `spec.template`: these nodes and no others."""


def add_nodes(*names: str, device: str = "nvidia.com/gpu", kept_for: str = "") -> None:
    """`kept_for`: a taint that keeps off whoever does not tolerate it."""
    room = {"cpu": "64", "memory": "1Ti", "pods": "110", "ephemeral-storage": "2Ti", device: str(GPUS)}
    apply(*(_node(name, kept_for) for name in names))
    patch = {"status": {"capacity": room, "allocatable": room}}
    kubectl("patch", "node", *names, "--subresource=status", "--type=merge", "-p", json.dumps(patch))
    # Not kubectl wait, which gives up on a node that has no conditions yet.
    eventually("the nodes are ready", _all_ready, timeout=60)


def _node(name: str, kept_for: str) -> Object:
    taints = [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]
    if kept_for:
        taints.append({"key": kept_for, "value": "present", "effect": "NoSchedule"})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **OURS},
        },
        "spec": {"taints": taints},
    }


def _all_ready() -> bool:
    nodes = json.loads(kubectl("get", "nodes", "-l", SELECTOR, "-o", "json"))["items"]
    return all(condition(node, "Ready").get("status") == "True" for node in nodes)


def remove_nodes(*names: str) -> None:
    """All of them, if none is named."""
    kubectl("delete", "node", *(names or ("-l", SELECTOR)), "--ignore-not-found", "--wait=true")


def add_volumes(
    names: list[str],
    size: str = "500Gi",
    modes: Sequence[str] = ("ReadWriteOnce", "ReadWriteMany"),
    folder: str = "",
    storage_class: str = "",
) -> None:
    """For claims that name this StorageClass, or none: there is nobody who makes volumes here.

    `folder`: one for all of them.
    """
    for name in names:
        apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name, "labels": {"made-for": "e2e"}},
                "spec": {
                    "capacity": {"storage": size},
                    "accessModes": list(modes),
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": storage_class,
                    "hostPath": {"path": f"/var/tmp/headwater-e2e/{folder or name}"},
                },
            }
        )


def remove_volumes(*names: str) -> None:
    """All of them, if none is named."""
    which = names or ("-l", "made-for=e2e")
    kubectl("delete", "pv", *which, "--ignore-not-found", "--wait=false")


def on_gpus(name: str, namespace: str, backend: str, **spec: Any) -> Object:
    """A ModelDeployment whose pods run on simulated nodes."""
    images = {"tgi": "text-generation-inference:3", "tensorrt-llm": "tensorrt-llm:1", "transformers": "transformers:5"}
    return {
        "apiVersion": "headwater.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": "hf://lab/model"},
            "backend": {"type": backend} | ({"image": images[backend]} if backend in images else {}),
            "weights": {"cached": False},
            "template": SIMULATED,
        }
        | spec,
    }


def engine_pods(name: str, namespace: str) -> list[Object]:
    selector = f"headwater.dev/deployment={name},app.kubernetes.io/component=engine"
    return find("pods", namespace, selector)
