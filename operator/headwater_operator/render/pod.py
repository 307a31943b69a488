"""The template of an engine's pod: render version 5.

A change that shows in any golden file restarts engines. Where it has to be, this file is kept as it is for those that
run, and a copy of it becomes the next version: see docs/rendering.md.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from headwater import quantities
from headwater.backends.base import ADMIN_KEY, GROUP_RANK, Launch, Pod
from headwater.kubernetes import (
    ADMIN_SECRET_KEY,
    CONTAINER,
    EVENTS_PORT,
    EVENTS_PORT_NAME,
    HTTP_PORT,
    HTTP_PORT_NAME,
    LABEL_BACKEND,
    LABEL_COMPONENT,
    LABEL_DEPLOYMENT,
    LABEL_GROUP,
    LABEL_REVISION,
    LABEL_WEIGHTS,
    REPLAY_PORT,
    REPLAY_PORT_NAME,
    admin_secret,
)
from headwater.resource import ModelDeployment
from headwater_operator.render import devices, storage
from headwater_operator.render.context import Context, Manifest, labels
from headwater_operator.render.names import leader_address
from headwater_operator.render.pin import revision
from headwater_operator.render.probes import drain, grace, pre_stop, probes

_USER: Final = 1000
_INTERFACE: Final = "eth0"
_HOSTNAME: Final = "kubernetes.io/hostname"


def template(deployment: ModelDeployment, context: Context, group: int | None) -> Manifest:
    """`group`: number of the group that the pod is one of, where a replica is several pods. Raises UnsupportedError."""
    spec, backend = deployment.spec, context.backend
    grouped = group is not None
    launch = backend.launch(deployment, describe(deployment, context, group))
    drains = backend.drains if launch.drains is None else launch.drains
    mounts = [
        storage.shared_memory(spec.parallelism.accelerators // spec.parallelism.nodes),
        *storage.scratch(),
        *model_mounts(deployment, context, launch),
        *storage.files(launch.files),
    ]
    asked = devices.asked_for(spec, backend)
    container = {
        "name": CONTAINER,
        "image": context.pin.image,
        "command": launch.argv,
        "env": env(deployment, context, launch, grouped=grouped),
        "ports": _ports(context),
        "resources": devices.resources(spec, backend),
        "volumeMounts": [mount.volume_mount for mount in mounts],
        "securityContext": container_security(locks_memory=grouped and devices.reaches_memory_of_others(asked)),
        # What a server wrote last: the operator reads it from here, and needs no right to read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"sleep": {"seconds": pre_stop(drains, spec, grouped=grouped)}}},
        **probes(backend, spec, grouped=grouped),
    }
    if launch.model_folder is not None:
        container["workingDir"] = str(PurePosixPath(launch.model_folder).parent)
    metadata: Manifest = {"labels": pod_labels(deployment, context, group)}
    if launch.files:
        metadata["annotations"] = storage.file_annotations(launch.files)
    pod: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": grace(spec),
        "containers": [container],
        "volumes": storage.volumes(mounts),
        "topologySpreadConstraints": [_spread(deployment)],
    }
    if context.pin.one_node:
        pod["affinity"] = {"podAffinity": _beside_others(deployment, context)}
    if tolerations := devices.tolerations(asked):
        pod["tolerations"] = tolerations
    return {"metadata": metadata, "spec": pod}


def pod_security() -> Manifest:
    """What the "restricted" standard demands of a pod, and a user: the images of most servers would run as root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*, locks_memory: bool = False) -> Manifest:
    """`locks_memory`: for cards that read and write it. The "restricted" standard does not allow that."""
    capabilities = {"drop": ["ALL"]} | ({"add": ["IPC_LOCK"]} if locks_memory else {})
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities, "readOnlyRootFilesystem": True}


def pod_labels(deployment: ModelDeployment, context: Context, group: int | None) -> dict[str, str]:
    own = {
        **labels(deployment, "engine"),
        LABEL_BACKEND: context.pin.backend,
        LABEL_REVISION: revision(deployment, context.pin),
    }
    if context.weights is not None:
        own[LABEL_WEIGHTS] = context.weights.claim
    return own if group is None else own | {LABEL_GROUP: str(group)}


def model_mounts(deployment: ModelDeployment, context: Context, launch: Launch) -> list[storage.Mount]:
    mounts = []
    if weights := storage.weights(deployment, context):
        mounts.append(storage.weights_claim(weights))
        if launch.model_folder is not None:
            mounts.append(storage.model_folder(weights, launch.model_folder))
    if context.build_claim is not None:
        mounts.append(storage.claim("engine", context.build_claim, storage.ENGINE))
    return mounts


def model(deployment: ModelDeployment, context: Context) -> str:
    """What the server is to load. Raises UnsupportedError where it cannot get there."""
    source, backend = deployment.spec.model.source, context.backend
    if weights := storage.weights(deployment, context):
        return weights.path
    if not source.startswith(backend.pod_sources):
        allowed = ", ".join(backend.pod_sources)
        hint = f"loads only {allowed} by itself: leave spec.weights.cached at true for {source}"
        if source.startswith(("package://", "random:")):
            hint = f"loads only {allowed}, not {source}"
        raise backend.unsupported(deployment, "spec.model.source", hint)
    return source.removeprefix("file://")


def env(deployment: ModelDeployment, context: Context, launch: Launch, *, grouped: bool) -> list[Manifest]:
    spec = deployment.spec
    values: dict[str, str] = {
        "HOME": storage.HOME,
        "USER": "headwater",  # the user has no name in the image, for which libraries ask
        "HF_HOME": storage.HUB_CACHE,
        **context.backend.no_statistics,
    }
    entries: dict[str, Manifest] = {}
    if grouped:
        entries["POD_IP"] = _from_field("POD_IP", "status.podIP")
        entries[GROUP_RANK] = _from_field(GROUP_RANK, "metadata.labels['apps.kubernetes.io/pod-index']")
        values |= {"GLOO_SOCKET_IFNAME": _INTERFACE, "NCCL_SOCKET_IFNAME": _INTERFACE}
    if not _asks_hub(deployment, context):
        values |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    elif secret := spec.model.secret_ref:
        key = {"secretKeyRef": {"name": secret.name, "key": secret.key}}
        entries["HF_TOKEN"] = {"name": "HF_TOKEN", "valueFrom": key}
    if context.pin.asks_for_admin_key:
        key = {"secretKeyRef": {"name": admin_secret(deployment.name), "key": ADMIN_SECRET_KEY}}
        entries[ADMIN_KEY] = {"name": ADMIN_KEY, "valueFrom": key}
    values |= {**launch.env, **context.defaults.env, **spec.backend.env}
    entries |= {name: {"name": name, "value": value} for name, value in values.items()}
    return list(entries.values())


def describe(deployment: ModelDeployment, context: Context, group: int | None = None) -> Pod:
    """The pod as its server has to know it. Raises UnsupportedError."""
    return Pod(
        model=model(deployment, context),
        mounted=storage.weights(deployment, context) is not None,
        port=HTTP_PORT,
        events_port=EVENTS_PORT if context.pin.publishes_kv_events else None,
        drain=drain(deployment.spec),
        device=devices.device(devices.asked_for(deployment.spec, context.backend)),
        threads=_cores(deployment.spec.resources),
        leader=None if group is None else leader_address(deployment, context.pin, group, context.namespace),
        engine=None if context.build_claim is None else storage.ENGINE,
        admin_key=context.pin.asks_for_admin_key,
        replay_port=REPLAY_PORT if context.pin.repeats_kv_events else None,
        views=context.pin.shows_views,
        guarded=True,
    )


def _asks_hub(deployment: ModelDeployment, context: Context) -> bool:
    return model(deployment, context).startswith("hf://") or bool(deployment.spec.adapters)


def _cores(resources: Mapping[str, Any]) -> int | None:
    """Whole cores of the CPU limit, one at least."""
    limit = resources.get("limits", {}).get("cpu")
    if limit is None:
        return None
    return max(1, int(quantities.parse(limit)))


def _ports(context: Context) -> list[Manifest]:
    ports = [{"name": HTTP_PORT_NAME, "containerPort": HTTP_PORT}]
    if context.pin.publishes_kv_events:
        ports.append({"name": EVENTS_PORT_NAME, "containerPort": EVENTS_PORT})
    if context.pin.repeats_kv_events:
        ports.append({"name": REPLAY_PORT_NAME, "containerPort": REPLAY_PORT})
    return ports


def _from_field(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _beside_others(deployment: ModelDeployment, context: Context) -> Manifest:
    """On the node of the replicas that are there, of whichever revision: their volume is there, and reaches no other.

    The first one goes where it likes, best to those who mount the volume for another deployment.
    """
    own = {LABEL_DEPLOYMENT: deployment.name, LABEL_COMPONENT: "engine"}
    term = {"labelSelector": {"matchLabels": own}, "topologyKey": _HOSTNAME}
    affinity: Manifest = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    if context.weights is not None:
        same = {"labelSelector": {"matchLabels": {LABEL_WEIGHTS: context.weights.claim}}, "topologyKey": _HOSTNAME}
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [{"weight": 100, "podAffinityTerm": same}]
    return affinity


def _spread(deployment: ModelDeployment) -> Manifest:
    """Of each revision by itself: what an old one leaves uneven is about to go."""
    return {
        "maxSkew": 1,
        "topologyKey": _HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {LABEL_DEPLOYMENT: deployment.name}},
        "matchLabelKeys": [LABEL_REVISION],
    }
