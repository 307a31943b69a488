"""The template of an engine's pod: render version 1, kept as it was for the engines that run by it.

All of its servers publish KV events, and none asks for an admin key. It goes with a release that says so.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from headwater import quantities
from headwater.backends.base import GROUP_RANK, Backend, Launch, Pod
from headwater.kubernetes import (
    CONTAINER,
    EVENTS_PORT,
    EVENTS_PORT_NAME,
    HTTP_PORT,
    HTTP_PORT_NAME,
    LABEL_BACKEND,
    LABEL_DEPLOYMENT,
    LABEL_GROUP,
    LABEL_REVISION,
)
from headwater.resource import ModelDeployment, Spec
from headwater_operator.render import storage
from headwater_operator.render.context import Context, Manifest, labels
from headwater_operator.render.names import leader_address
from headwater_operator.render.pin import revision
from headwater_operator.render.probes import drain, grace, pre_stop, probes

GPU: Final = "nvidia.com/gpu"
_USER: Final = 1000
_INTERFACE: Final = "eth0"


def template(deployment: ModelDeployment, context: Context, group: int | None) -> Manifest:
    """`group`: number of the group that the pod is one of, where a replica is several pods. Raises UnsupportedError."""
    spec, backend = deployment.spec, context.backend
    grouped = group is not None
    launch = backend.launch(deployment, describe(deployment, context, group))
    mounts = [
        storage.shared_memory(spec.parallelism.tensor // spec.parallelism.nodes),
        *storage.scratch(),
        *model_mounts(deployment, context, launch),
        *storage.files(launch.files),
    ]
    container = {
        "name": CONTAINER,
        "image": context.pin.image,
        "command": launch.argv,
        "env": env(deployment, context, launch, grouped=grouped),
        "ports": _ports(backend),
        "resources": resources(spec, backend),
        "volumeMounts": [mount.volume_mount for mount in mounts],
        "securityContext": container_security(),
        "lifecycle": {"preStop": {"sleep": {"seconds": pre_stop(backend.drains, spec, grouped=grouped)}}},
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
    }
    if group is None:
        pod["topologySpreadConstraints"] = [_spread(deployment)]
    if tolerations := gpu_tolerations(container["resources"]):
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


def container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def pod_labels(deployment: ModelDeployment, context: Context, group: int | None) -> dict[str, str]:
    own = {
        **labels(deployment, "engine"),
        LABEL_BACKEND: context.pin.backend,
        LABEL_REVISION: revision(deployment, context.pin),
    }
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
    values |= {**launch.env, **spec.backend.env}
    entries |= {name: {"name": name, "value": value} for name, value in values.items()}
    return list(entries.values())


def resources(spec: Spec, backend: Backend) -> Manifest:
    """Those of the spec, and the accelerators that it implies where it names no device of its own."""
    given: dict[str, Any] = {**spec.resources}
    named = {name for part in ("limits", "requests") for name in given.get(part, {})}
    if (backend.needs_gpu or spec.parallelism.tensor > 1) and not any("/" in name for name in named):
        count = spec.parallelism.tensor // spec.parallelism.nodes
        given["limits"] = {**given.get("limits", {}), GPU: str(count)}
    return given


def gpu_tolerations(resources: Manifest) -> list[Manifest]:
    """Nodes with GPUs are commonly kept free of pods that need none."""
    if str(resources.get("limits", {}).get(GPU, 0)) == "0":
        return []
    return [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]


def describe(deployment: ModelDeployment, context: Context, group: int | None = None) -> Pod:
    """The pod as its server has to know it. Raises UnsupportedError."""
    return Pod(
        model=model(deployment, context),
        mounted=storage.weights(deployment, context) is not None,
        port=HTTP_PORT,
        events_port=EVENTS_PORT,
        drain=drain(deployment.spec),
        threads=_cores(deployment.spec.resources),
        leader=None if group is None else leader_address(deployment, context.pin, group, context.namespace),
        engine=None if context.build_claim is None else storage.ENGINE,
    )


def _asks_hub(deployment: ModelDeployment, context: Context) -> bool:
    return model(deployment, context).startswith("hf://") or bool(deployment.spec.adapters)


def _cores(resources: Mapping[str, Any]) -> int | None:
    """Whole cores of the CPU limit, one at least."""
    limit = resources.get("limits", {}).get("cpu")
    if limit is None:
        return None
    return max(1, int(quantities.parse(limit)))


def _ports(backend: Backend) -> list[Manifest]:
    ports = [{"name": HTTP_PORT_NAME, "containerPort": HTTP_PORT}]
    if backend.publishes_kv_events:
        ports.append({"name": EVENTS_PORT_NAME, "containerPort": EVENTS_PORT})
    return ports


def _from_field(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _spread(deployment: ModelDeployment) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {LABEL_DEPLOYMENT: deployment.name}},
    }
