"""The volume that keeps the weights, and the Job that fills it.

Both belong to a source and its revision, not to one ModelDeployment: those of a namespace that name the same one share
them, so nothing in here may depend on which of them is reconciled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from headwater import backends
from headwater.kubernetes import (
    FETCH_PORT,
    FETCH_PORT_VARIABLE,
    FETCHER,
    GROUP,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    MANAGED_BY,
)
from headwater.pick import resolve_auto
from headwater.resource import API_VERSION, KIND, ModelDeployment
from headwater_operator.cluster.kinds import Object, annotations_of, name_of, namespace_of, uid_of, without_absent
from headwater_operator.config import OperatorSettings
from headwater_operator.render import devices
from headwater_operator.render.context import ClaimDefaults, Inherited, Manifest, WeightsVolume
from headwater_operator.render.pod import container_security, pod_security
from headwater_operator.render.storage import HOME, HUB_CACHE, MODELS, claim, claim_spec, scratch, volumes
from headwater_operator.render.template import merge

FILLED: Final = f"{GROUP}/filled"
"""Annotation of a volume whose weights are complete. The Job goes away by itself; this stays."""
VERIFIED: Final = f"{GROUP}/verified"
"""Annotation of such a volume: what `headwater fetch` said of it in the end. The Job's pod, which told, goes away."""
MADE_FROM: Final = f"{GROUP}/made-from"
"""Annotation of a Job: a hash of what it was made from."""
SOURCE: Final = f"{GROUP}/source"
"""Annotation of volume and Job, for people: the name is a hash."""
COPIED: Final = f"{GROUP}/copied"
"""Annotation of a volume that pods do not mount, but a copy of it, which many nodes can have. Set when it is made."""
MOST_OWNERS: Final = 64
"""Of one volume. Each time that one of them goes, Kubernetes' garbage collector asks for all the others, and each write
of the volume carries them: with a thousand that is a million questions. A volume that more use is kept."""
COMPONENT: Final = "weights"
_COPY: Final = "weights-copy"
FETCHED: Final = ("hf://", "s3://", "oci://")
"""Sources that are copied into a volume. The others are in one, or in the image, already."""

_PREFIX: Final = "weights-"
_ATTEMPTS: Final = 5
_TTL: Final = 600
"""Seconds that a Job stays after it has ended. One that failed is made again then."""
_PLACEMENT: Final = (
    "nodeSelector",
    "affinity",
    "tolerations",
    "imagePullSecrets",
    "serviceAccountName",
    "priorityClassName",
    "schedulerName",
)
"""What the Job takes over from `spec.template.spec`: a volume is often bound to where its first pod runs, and the
engines must get there as well."""


def key(deployment: ModelDeployment) -> str:
    """The source, as far as it says what is in the volume."""
    model = deployment.spec.model
    return f"{model.source}@{model.revision}"


def volume(deployment: ModelDeployment) -> WeightsVolume:
    model = deployment.spec.model
    claim = volume_of(model.source, model.revision)
    return WeightsVolume(claim, f"{MODELS}/{claim.removeprefix(_PREFIX)}")


def volume_of(source: str, revision: str) -> str:
    """Name of the claim that holds these weights."""
    return _PREFIX + hashlib.sha256(f"{source}@{revision}".encode()).hexdigest()[:16]


def render_claim(
    deployment: ModelDeployment,
    owners: Mapping[str, str],
    settings: OperatorSettings,
    namespace: str,
    observed: Object | None,
    *,
    filled: bool,
    verified: str = "",
) -> Manifest:
    """`deployment`: the spokesman of its users. `owners`: names of the ModelDeployments that the volume goes with, by
    UID; none: it stays.

    What cannot be changed once it is made is taken from what was observed.
    """
    annotations = {SOURCE: key(deployment)} | ({FILLED: "true"} if filled else {})
    annotations |= {VERIFIED: verified} if verified else {}
    wanted_mode = deployment.spec.weights.access_mode or settings.weights_access_mode
    copied = is_copied(observed) if observed is not None else wanted_mode == "ReadOnlyMany"
    annotations |= {COPIED: "true"} if copied else {}
    metadata: Manifest = _metadata(deployment, namespace) | {"annotations": annotations}
    metadata = Inherited.of(settings).apply(deployment, metadata)
    # Named also where there are none: what is left out would not differ from an owner that is to go.
    metadata["ownerReferences"] = [_owner(API_VERSION, KIND, name, uid) for uid, name in sorted(owners.items())]
    wanted = claim_spec(deployment.spec.weights, ClaimDefaults.of(settings))
    spec = wanted if observed is None else _fixed(observed["spec"])
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def is_copied(claim: Object) -> bool:
    return annotations_of(claim).get(COPIED) == "true"


def copy_of(there: WeightsVolume) -> WeightsVolume:
    return WeightsVolume(f"{there.claim}-copy", there.path, read_only=True)


def render_copy(deployment: ModelDeployment, settings: OperatorSettings, filled: Object) -> Manifest:
    """A volume with the content of one that is filled, and that goes with it. Nobody can write to it."""
    name = name_of(filled)
    metadata: Manifest = {
        "name": copy_of(volume(deployment)).claim,
        "namespace": namespace_of(filled),
        "labels": _labels() | {LABEL_COMPONENT: _COPY},
        "annotations": {SOURCE: key(deployment)},
        "ownerReferences": [_owner("v1", "PersistentVolumeClaim", name, uid_of(filled))],
    }
    spec = _fixed(filled["spec"]) | {
        "accessModes": ["ReadOnlyMany"],
        "dataSource": {"kind": "PersistentVolumeClaim", "name": name},
    }
    metadata = Inherited.of(settings).apply(deployment, metadata)
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def _fixed(spec: Mapping[str, Any]) -> Manifest:
    return {name: spec[name] for name in ("accessModes", "resources", "storageClassName") if name in spec}


def render_job(
    deployment: ModelDeployment, settings: OperatorSettings, volume_claim: Object, *, secret: str | None = None
) -> Manifest:
    """It goes with the volume, so that it can outlive any one of the ModelDeployments that wait for it.

    `secret`: the name of one all of whose keys are variables of it.
    """
    near = reaches_one_node(volume_claim["spec"].get("accessModes") or [])
    template = _template(deployment, settings, name_of(volume_claim), secret, near=near)
    seconds = max(round(deployment.spec.load_timeout.total_seconds()), 1)
    spec = {
        "backoffLimit": _ATTEMPTS - 1,
        "activeDeadlineSeconds": seconds,
        "ttlSecondsAfterFinished": _TTL,
        "template": template,
    }
    metadata = _metadata(deployment, namespace_of(volume_claim)) | {
        "annotations": {SOURCE: key(deployment), MADE_FROM: _hash(spec)},
        "ownerReferences": [_owner("v1", "PersistentVolumeClaim", name_of(volume_claim), uid_of(volume_claim))],
    }
    metadata = Inherited.of(settings).apply(deployment, metadata)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def reaches_one_node(access_modes: Sequence[str]) -> bool:
    return not any(mode.endswith("Many") for mode in access_modes)


def made_alike(one: Object, other: Object) -> bool:
    """Whether two Jobs would do the same."""
    return annotations_of(one).get(MADE_FROM) == annotations_of(other).get(MADE_FROM)


def _template(
    deployment: ModelDeployment, settings: OperatorSettings, claim_name: str, secret: str | None, *, near: bool
) -> Manifest:
    """`near`: the volume is bound to where this pod runs, so it has to be where the engines can be."""
    model, there = deployment.spec.model, volume(deployment)
    mounts = [claim("weights", claim_name, MODELS, read_only=False), *scratch()]
    container = {
        "name": FETCHER,
        "image": settings.weights_image or settings.engine_image,
        "command": ["headwater", "fetch", model.source, there.path, "--revision", model.revision],
        "env": [*_variables(deployment, settings), *_secret(deployment)],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        "volumeMounts": [mount.volume_mount for mount in mounts],
        "securityContext": container_security(),
        # The operator reads why it failed from here, and needs no right to read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if model.source.startswith("s3://") and model.secret_ref is not None:
        secret = model.secret_ref.name
    if secret is not None:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    wanted = merge(settings.default_template, deployment.spec.template).get("spec") or {}
    placement = {name: value for name, value in wanted.items() if name in _PLACEMENT}
    return {
        "metadata": without_absent(Inherited.of(settings).apply(deployment, {"labels": _labels()})),
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            "containers": [container],
            "volumes": volumes(mounts),
            **merge(_near_devices(deployment) if near else {}, placement),
        },
    }


def _near_devices(deployment: ModelDeployment) -> Manifest:
    """Best on a node that has what the engines will ask for, without asking for it: it would lie idle meanwhile."""
    spec = deployment.spec
    name = resolve_auto(deployment) if spec.backend.type == "auto" else spec.backend.type
    wanted = devices.asked_for(spec, backends.get(name))
    labels = [{"matchExpressions": [{"key": key, "operator": "Exists"}]} for key in devices.node_labels(wanted)]
    near: Manifest = {}
    if tolerations := devices.tolerations(wanted):
        near["tolerations"] = tolerations
    if labels:
        preferred = [{"weight": 100, "preference": each} for each in labels]
        near["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return near


def _variables(deployment: ModelDeployment, settings: OperatorSettings) -> list[Manifest]:
    """With those of the server: a mirror of the hub or a proxy holds for the Job as well."""
    own = {"HOME": HOME, "HF_HOME": HUB_CACHE, "DO_NOT_TRACK": "1", FETCH_PORT_VARIABLE: str(FETCH_PORT)}
    values = own | settings.default_env | deployment.spec.backend.env
    return [{"name": name, "value": value} for name, value in values.items()]


def _secret(deployment: ModelDeployment) -> list[Manifest]:
    model = deployment.spec.model
    variable = {"hf": "HF_TOKEN", "oci": "DOCKER_AUTH_CONFIG"}.get(model.source.partition("://")[0])
    if model.secret_ref is None or variable is None:
        return []
    key = {"name": model.secret_ref.name, "key": model.secret_ref.key}
    return [{"name": variable, "valueFrom": {"secretKeyRef": key}}]


def _metadata(deployment: ModelDeployment, namespace: str) -> Manifest:
    return {"name": volume(deployment).claim, "namespace": namespace, "labels": _labels()}


def _labels() -> dict[str, str]:
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: COMPONENT}


def _owner(api_version: str, kind: str, name: str, uid: str) -> Manifest:
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": False}


def _hash(spec: Manifest) -> str:
    text = json.dumps(spec, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
