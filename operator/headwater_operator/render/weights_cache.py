"""The platform's cache of weights: one share, filled once from a namespace of the platform's, read in all others.

A claim reaches its own namespace alone. So the share is named by a volume for each namespace: one that can be written,
where the weights are fetched, and read-only ones where models run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from headwater.kubernetes import GROUP, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY
from headwater.resource import API_VERSION, KIND, ModelDeployment
from headwater_operator.cluster.kinds import Object, annotations_of
from headwater_operator.config import OperatorSettings
from headwater_operator.render.context import Manifest
from headwater_operator.render.storage import MODELS
from headwater_operator.render.weights import MOST_OWNERS, key, render_job, volume

CLAIM: Final = "headwater-weights-cache"
"""Name of the claim in each namespace."""
COMPONENT: Final = "weights-cache"
KEPT: Final = f"{GROUP}/kept"
"""Annotation of a claim that goes with nobody."""
_LABELS: Final = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: COMPONENT}
SELECTOR: Final = ",".join(f"{name}={value}" for name, value in _LABELS.items())
_NAMESPACE: Final = "$(NAMESPACE)"
"""In the texts of the volume: some drivers want a handle for each volume that is no other one's."""
_READ_ONLY: Final = ("nfs", "csi", "cephfs")
"""Sources of a volume that can be told so."""
_SECONDS: Final = 6 * 3600
"""For one fetch: as it is nobody's, no resource says how long it may take."""


@dataclass(frozen=True, slots=True)
class Cache:
    namespace: str
    """Where weights are fetched."""
    source: Mapping[str, Any]
    """Of a PersistentVolume's spec what says where the share is."""
    models: tuple[str, ...]
    """Patterns of SOURCE@REVISION."""
    secret: str | None
    """All of its keys are variables of the fetch."""

    @classmethod
    def of(cls, settings: OperatorSettings) -> "Cache | None":
        given = settings.weights_cache
        if not given:
            return None
        return cls(given["namespace"], given["volume"], tuple(given["models"]), given.get("secret"))

    def place(self, deployment: ModelDeployment) -> str | None:
        """Claim and folder of its weights; None: the platform does not share them."""
        spec, wanted = deployment.spec, key(deployment)
        # Who brings a token means what others may not see.
        own = not spec.weights.cached or spec.model.secret_ref is not None
        if own or not any(fnmatchcase(wanted, each) for each in self.models):
            return None
        return place_of(deployment)

    def volume(self, namespace: str) -> Manifest:
        """The share, as this namespace has it."""
        writable = namespace == self.namespace
        source = _expanded(self.source, namespace)
        for kind in _READ_ONLY:
            if kind in source and not writable:
                source[kind] = source[kind] | {"readOnly": True}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume_name(namespace), "labels": _LABELS},
            "spec": {
                "capacity": {"storage": "1Ti"},  # of a share it says nothing, and has to be there
                **source,
                "accessModes": [_mode(writable=writable)],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "claimRef": {"namespace": namespace, "name": CLAIM},
            },
        }

    def claim(self, namespace: str, users: Mapping[str, str], *, kept: bool = False) -> Manifest:
        """`users`: names of the ModelDeployments that it goes with, by UID. That of the cache stays.

        `kept`: so does this one, as more have used it than are named. Who they are is known of nobody but who comes by,
        so it is noted on the claim.
        """
        writable = namespace == self.namespace
        kept = kept or len(users) > MOST_OWNERS
        owners = {} if writable or kept else users
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": CLAIM,
                "namespace": namespace,
                "labels": _LABELS,
                "annotations": {KEPT: "true"} if kept else {},
                "ownerReferences": [
                    {"apiVersion": API_VERSION, "kind": KIND, "name": name, "uid": uid, "blockOwnerDeletion": False}
                    for uid, name in sorted(owners.items())
                ],
            },
            "spec": {
                "accessModes": [_mode(writable=writable)],
                "resources": {"requests": {"storage": self.source.get("capacity", {}).get("storage", "1Ti")}},
                "storageClassName": "",
                "volumeName": volume_name(namespace),
            },
        }

    def job(self, deployment: ModelDeployment, settings: OperatorSettings, claim: Object) -> Manifest:
        """The same for all who ask: nothing of it is theirs, neither a token nor a hub that they may have named."""
        model = {"source": deployment.spec.model.source, "revision": deployment.spec.model.revision}
        spec = {"model": model, "backend": {"type": "headwater"}, "loadTimeout": f"{_SECONDS}s"}
        metadata = {"name": "cache", "namespace": self.namespace}
        neutral = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
        return render_job(ModelDeployment.model_validate(neutral), settings, claim, secret=self.secret)


def place_of(deployment: ModelDeployment) -> str:
    """Claim and folder, should the cache have them."""
    return f"{CLAIM}/{_folder(deployment)}"


def filled(claim: Object, deployment: ModelDeployment) -> str | None:
    """What was verified of these weights; None: they are not there."""
    return annotations_of(claim).get(filled_annotation(deployment))


def filled_annotation(deployment: ModelDeployment) -> str:
    """On the cache's own claim."""
    return f"filled.{GROUP}/{_folder(deployment)}"


def volume_name(namespace: str) -> str:
    return f"{CLAIM}-{namespace}"


def _folder(deployment: ModelDeployment) -> str:
    return volume(deployment).path.removeprefix(f"{MODELS}/")


def _mode(*, writable: bool) -> str:
    return "ReadWriteMany" if writable else "ReadOnlyMany"


def _expanded(value: Any, namespace: str) -> Any:
    match value:
        case str():
            return value.replace(_NAMESPACE, namespace)
        case dict():
            return {name: _expanded(each, namespace) for name, each in value.items()}
        case list():
            return [_expanded(each, namespace) for each in value]
    return value
