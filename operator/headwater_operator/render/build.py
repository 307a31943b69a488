"""The Job that builds a TensorRT-LLM engine, and the claim that keeps it.

Both are named after what shapes the engine, so that a state of the spec which returns finds its engine built.
"""

from dataclasses import replace
from typing import Final

from headwater.kubernetes import BUILDER
from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import without_absent
from headwater_operator.render import devices, pod, pod_v4, storage
from headwater_operator.render.context import Context, Manifest, labels, metadata
from headwater_operator.render.names import build_name
from headwater_operator.render.template import merge

_COMPONENT: Final = "build"
_RETRIES: Final = 2
_LONGEST: Final = 4 * 3600
"""Seconds for all attempts: a large engine takes an hour. `spec.loadTimeout` gives more, where it is longer."""
_OLD_RULES: Final = 4
"""Up to this render version a build has the variables that it had then."""
_PLACEMENT: Final = {
    "nodeSelector",
    "tolerations",
    "affinity",
    "runtimeClassName",
    "priorityClassName",
    "imagePullSecrets",
}


def render_build(deployment: ModelDeployment, context: Context) -> list[Manifest]:
    """Claim and Job; empty where nothing is to be built. Raises UnsupportedError.

    `context.build_claim` is not looked at: it is what comes of it.
    """
    rules = pod if context.pin.render_version > _OLD_RULES else pod_v4
    launch = context.backend.build(deployment, rules.describe(deployment, context), storage.ENGINE)
    if launch is None:
        return []
    spec, name = deployment.spec, build_name(deployment, context.pin)
    mounts = [
        storage.shared_memory(spec.parallelism.accelerators),
        *storage.scratch(),
        *pod.model_mounts(deployment, replace(context, build_claim=None), launch),
        storage.claim("engine", name, storage.ENGINE, read_only=False),
    ]
    container: Manifest = {
        "name": BUILDER,
        "image": context.pin.image,
        "command": launch.argv,
        "env": rules.env(deployment, context, launch, grouped=False),
        "resources": devices.resources(spec, context.backend),
        "volumeMounts": [mount.volume_mount for mount in mounts],
        "securityContext": pod.container_security(),
        # The operator reads why it failed from here, and needs no right to read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    made: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod.pod_security(),
        "containers": [container],
        "volumes": storage.volumes(mounts),
    }
    if tolerations := devices.tolerations(devices.asked_for(spec, context.backend)):
        made["tolerations"] = tolerations
    return [_claim(deployment, context, name), _job(deployment, context, name, made)]


def _job(deployment: ModelDeployment, context: Context, name: str, made: Manifest) -> Manifest:
    own = context.inherited.apply(deployment, {"labels": labels(deployment, _COMPONENT)})
    template = {"metadata": without_absent(own), "spec": merge(made, _placement(deployment, context))}
    spec = {
        "backoffLimit": _RETRIES,
        "activeDeadlineSeconds": max(_LONGEST, round(deployment.spec.load_timeout.total_seconds())),
        "template": template,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(deployment, context, name, _COMPONENT),
        "spec": spec,  # kept when done: it says that the claim is filled
    }


def _placement(deployment: ModelDeployment, context: Context) -> Manifest:
    """Of `spec.template` what says where pods run: an engine is for the kind of GPU that it was built on."""
    given = merge(context.defaults.template, deployment.spec.template).get("spec", {})
    return {field: value for field, value in given.items() if field in _PLACEMENT}


def _claim(deployment: ModelDeployment, context: Context, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(deployment, context, name, _COMPONENT),
        "spec": storage.claim_spec(deployment.spec.weights, context.claims),
    }
