"""The kinds of objects that the operator reads or writes, and where the API server keeps them."""

from dataclasses import dataclass
from typing import Any, Final

from headwater.kubernetes import GROUP, PLURAL, VERSION

Object = dict[str, Any]
"""An object as the API server writes it in JSON."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One ModelDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    api_version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """`namespace` None: all of them, or what belongs to none."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        parts = [root, *(("namespaces", namespace) if namespace else ()), self.plural, name, subresource]
        return "/".join(part for part in parts if part)


MODEL_DEPLOYMENT: Final = Kind("ModelDeployment", f"{GROUP}/{VERSION}", PLURAL)
DEPLOYMENT: Final = Kind("Deployment", "apps/v1", "deployments")
STATEFUL_SET: Final = Kind("StatefulSet", "apps/v1", "statefulsets")
SERVICE: Final = Kind("Service", "v1", "services")
POD: Final = Kind("Pod", "v1", "pods")
JOB: Final = Kind("Job", "batch/v1", "jobs")
CLAIM: Final = Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims")
VOLUME: Final = Kind("PersistentVolume", "v1", "persistentvolumes")
BUDGET: Final = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
NETWORK_POLICY: Final = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
SECRET: Final = Kind("Secret", "v1", "secrets")
ENDPOINT_SLICE: Final = Kind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")
LEASE: Final = Kind("Lease", "coordination.k8s.io/v1", "leases")
EVENT: Final = Kind("Event", "v1", "events")

CHILDREN: Final = (DEPLOYMENT, STATEFUL_SET, SERVICE, POD, JOB, CLAIM, BUDGET, NETWORK_POLICY)
"""What is made for a ModelDeployment, by us or, as with Pods, by the controllers of what we made."""

_BY_NAME: Final = {
    kind.name: kind for kind in (MODEL_DEPLOYMENT, *CHILDREN, VOLUME, SECRET, ENDPOINT_SLICE, LEASE, EVENT)
}


def kind_of(manifest: Object) -> Kind:
    return _BY_NAME[manifest["kind"]]


def name_of(manifest: Object) -> str:
    return str(manifest["metadata"]["name"])


def namespace_of(manifest: Object) -> str:
    """Empty for what belongs to none."""
    return str(manifest["metadata"].get("namespace", ""))


def labels_of(manifest: Object) -> dict[str, str]:
    return manifest["metadata"].get("labels") or {}


def annotations_of(manifest: Object) -> dict[str, str]:
    return manifest["metadata"].get("annotations") or {}


def uid_of(manifest: Object) -> str:
    return str(manifest["metadata"].get("uid", ""))


def owned_by(manifest: Object, uid: str) -> bool:
    """Whether an object was made for the owner with this UID."""
    return any(owner["uid"] == uid for owner in manifest["metadata"].get("ownerReferences") or [])


def orphaned(manifest: Object) -> bool:
    """Whether it was left behind: by `kubectl delete --cascade=orphan`, or by a restored backup."""
    return not manifest["metadata"].get("ownerReferences")


def without_absent(metadata: Object) -> Object:
    """Without labels and annotations that are None: rendered, that says that there is to be no such one."""
    parts = {
        part: {name: value for name, value in metadata[part].items() if value is not None}
        for part in ("labels", "annotations")
        if part in metadata
    }
    kept = {name: value for name, value in metadata.items() if name not in parts}
    return kept | {part: values for part, values in parts.items() if values}
