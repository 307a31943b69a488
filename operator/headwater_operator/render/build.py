"""The Job that builds a TensorRT-LLM engine, and the claim that keeps it.

Both are named after what shapes the engine, so that a state of the spec which returns finds its engine built.
"""

from dataclasses import replace
from typing import Final

from headwater.resource import ModelDeployment
from headwater_operator.render import storage
from headwater_operator.render.context import Context, Manifest, labels, metadata
from headwater_operator.render.names import build_name
from headwater_operator.render.pod import (
    container_security,
    describe,
    env,
    gpu_tolerations,
    model_mounts,
    pod_security,
    resources,
)
from headwater_operator.render.template import merge

_COMPONENT: Final = "build"
_RETRIES: Final = 2
_PLACEMENT: Final = {"nodeSelector", "tolerations", "affinity", "runtimeClassName", "priorityClassName"}


def render_build(deployment: ModelDeployment, context: Context) -> list[Manifest]:
    """Claim and Job; empty where nothing is to be built. Raises UnsupportedError.

    `context.build_claim` is not looked at: it is what comes of it.
    """
    launch = context.backend.build(deployment, describe(deployment, context), storage.ENGINE)
    if launch is None:
        return []
    spec, name = deployment.spec, build_name(deployment, context.pin)
    mounts = [
        storage.shared_memory(spec.parallelism.tensor),
        *storage.scratch(),
        *model_mounts(deployment, replace(context, build_claim=None), launch),
        storage.claim("engine", name, storage.ENGINE, read_only=False),
    ]
    container: Manifest = {
        "name": _COMPONENT,
        "image": context.pin.image,
        "command": launch.argv,
        "env": env(deployment, context, launch, grouped=False),
        "resources": resources(spec, context.backend),
        "volumeMounts": [mount.volume_mount for mount in mounts],
        "securityContext": container_security(),
    }
    pod: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": storage.volumes(mounts),
    }
    if tolerations := gpu_tolerations(container["resources"]):
        pod["tolerations"] = tolerations
    return [_claim(deployment, context, name), _job(deployment, context, name, pod)]


def _job(deployment: ModelDeployment, context: Context, name: str, pod: Manifest) -> Manifest:
    template = {"metadata": {"labels": labels(deployment, _COMPONENT)}, "spec": merge(pod, _placement(deployment))}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(deployment, context, name, _COMPONENT),
        "spec": {"backoffLimit": _RETRIES, "template": template},  # kept when done: it says that the claim is filled
    }


def _placement(deployment: ModelDeployment) -> Manifest:
    """Of `spec.template` what says where pods run: an engine is for the kind of GPU that it was built on."""
    given = deployment.spec.template.get("spec", {})
    return {field: value for field, value in given.items() if field in _PLACEMENT}


def _claim(deployment: ModelDeployment, context: Context, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(deployment, context, name, _COMPONENT),
        "spec": storage.claim_spec(deployment.spec.weights, context.claims),
    }
