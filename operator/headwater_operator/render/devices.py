"""The devices of a pod: which of them compute, which nodes have them, and what the pod needs for them.

Kubernetes knows devices as extended resources (`nvidia.com/gpu: 2`) or, by dynamic resource allocation, as claims whose
content it does not tell. Cards of the network are extended resources as well, and stand beside the accelerators.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from headwater.backends.base import Backend, Device
from headwater.kubernetes import CONTAINER
from headwater.resource import Spec

GPU: Final = "nvidia.com/gpu"

_NETWORK: Final = re.compile(
    r"rdma/.+|networking\.gke\.io.*/.+|openshift\.io/.+|.+/.*(efa|rdma|roce|sriov|hostdev|hca).*"
)
"""Resources that are ways to other nodes: nothing computes on them. Their plugins name them as their admins please."""
_NODE_LABELS: Final = {
    "nvidia.com": (
        "nvidia.com/gpu.present",
        "cloud.google.com/gke-accelerator",
        "k8s.amazonaws.com/accelerator",
        "kubernetes.azure.com/accelerator",
    ),
    "amd.com": ("feature.node.kubernetes.io/amd-gpu",),
    "habana.ai": ("feature.node.kubernetes.io/pci-1da3.present",),
}
"""By vendor, labels that nodes with its devices have, as plugins and clouds set them."""


def resources(spec: Spec, backend: Backend) -> dict[str, Any]:
    """Those of the spec, and the GPUs that it implies where it names nothing to compute on, in its template neither."""
    return _with_gpus(spec.resources, spec, backend)


def asked_for(spec: Spec, backend: Backend) -> dict[str, Any]:
    """The same, with what the template gives to the server's container."""
    return _with_gpus(_everything(spec), spec, backend)


def _with_gpus(given: Mapping[str, Any], spec: Spec, backend: Backend) -> dict[str, Any]:
    everything = _everything(spec)
    if not backend.needs_gpu or everything["claims"] or accelerators(everything):
        return {**given}
    count = spec.parallelism.accelerators // spec.parallelism.nodes
    return {**given, "limits": {**given.get("limits", {}), GPU: str(count)}}


def accelerators(resources: Mapping[str, Any]) -> dict[str, Any]:
    """What a container computes on beside its CPUs, such as `nvidia.com/gpu`, with the amounts."""
    return {name: amount for name, amount in _extended(resources).items() if not _NETWORK.fullmatch(name)}


def reaches_memory_of_others(resources: Mapping[str, Any]) -> bool:
    """Whether it has a card that reads and writes memory over the network, which has to be locked for that."""
    return any(_NETWORK.fullmatch(name) and str(amount) != "0" for name, amount in _extended(resources).items())


def device(resources: Mapping[str, Any]) -> Device:
    """A claim, or a device of another vendor, may be anything."""
    found = _present(resources)
    if any(name.startswith("nvidia.com/") for name in found):
        return "cuda"
    return "unknown" if resources.get("claims") or found else "cpu"


def tolerations(resources: Mapping[str, Any]) -> list[dict[str, str]]:
    """Nodes with accelerators are commonly kept free of pods that need none, by a taint of the resource's name.

    Parts of NVIDIA's GPUs (MIG) are on nodes that are tainted for whole ones, and so are most that a claim is for.
    """
    keys = {GPU if name.startswith("nvidia.com/") else name for name in _present(resources)}
    if resources.get("claims"):
        keys.add(GPU)
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in sorted(keys)]


def node_labels(resources: Mapping[str, Any]) -> list[str]:
    """Labels by which nodes with these accelerators are known; a node has one of them at most."""
    vendors = {name.partition("/")[0] for name in _present(resources)}
    return [label for vendor in sorted(vendors) for label in _NODE_LABELS.get(vendor, ())]


def _present(resources: Mapping[str, Any]) -> list[str]:
    return [name for name, amount in accelerators(resources).items() if str(amount) != "0"]


def _extended(resources: Mapping[str, Any]) -> dict[str, Any]:
    named = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return {name: amount for name, amount in named.items() if "/" in name}


def _everything(spec: Spec) -> dict[str, Any]:
    """With what the template gives to the server's container. One of the wrong shape is refused where it is merged."""
    containers = (spec.template.get("spec") or {}).get("containers")
    named = [each for each in containers if isinstance(each, dict)] if isinstance(containers, list) else []
    patch = next((each.get("resources") for each in named if each.get("name") == CONTAINER), None) or {}
    parts = {part: {**spec.resources.get(part, {}), **(patch.get(part) or {})} for part in ("limits", "requests")}
    return {**parts, "claims": [*spec.resources.get("claims", []), *(patch.get("claims") or [])]}
