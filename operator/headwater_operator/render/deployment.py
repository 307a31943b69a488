"""The Deployment whose pods are the replicas, one pod each."""

import math

from headwater.kubernetes import LABEL_COMPONENT, LABEL_DEPLOYMENT
from headwater.resource import ModelDeployment, Spec
from headwater_operator.render.context import Context, Manifest, metadata
from headwater_operator.render.pin import PIN_ANNOTATION, SPEC_HASH_ANNOTATION, spec_hash
from headwater_operator.render.versions import pod_template

_DEADLINE_MARGIN = 600
"""Seconds beyond the load timeout: for the image, and for a node to come."""
_HISTORY = 3
MIN_READY = 10
"""Seconds that a new pod must have been ready before an old one goes: it may die of its first request."""


def selector(deployment: ModelDeployment) -> dict[str, str]:
    """Of the pods of a deployment, whatever their revision. Kubernetes lets nobody change a Deployment's."""
    return {LABEL_DEPLOYMENT: deployment.name, LABEL_COMPONENT: "engine"}


def workload_metadata(deployment: ModelDeployment, context: Context, name: str) -> Manifest:
    """With what the next reconciliation must know of the pods that are there."""
    annotations = {PIN_ANNOTATION: context.pin.to_json(), SPEC_HASH_ANNOTATION: spec_hash(deployment.spec)}
    made = metadata(deployment, context, name, "engine")
    return made | {"annotations": made.get("annotations", {}) | annotations}


def progress_deadline(spec: Spec) -> int:
    """Seconds that a new replica gets before it is told of."""
    return math.ceil(spec.load_timeout.total_seconds()) + _DEADLINE_MARGIN


def deployment(resource: ModelDeployment, context: Context) -> Manifest:
    surge = context.strategy == "Surge"
    spec: Manifest = {
        "selector": {"matchLabels": selector(resource)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": int(surge), "maxUnavailable": int(not surge)},
        },
        "progressDeadlineSeconds": progress_deadline(resource.spec),
        "minReadySeconds": MIN_READY,
        "revisionHistoryLimit": _HISTORY,
        "paused": context.paused,
        "template": pod_template(resource, context),
    }
    if context.replicas is not None:
        spec["replicas"] = context.replicas
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": workload_metadata(resource, context, resource.name),
        "spec": spec,
    }
