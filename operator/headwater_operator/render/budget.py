"""The PodDisruptionBudget: draining nodes takes one replica of a deployment at a time."""

from headwater.resource import ModelDeployment, Spec
from headwater_operator.render.context import Context, Manifest, metadata
from headwater_operator.render.deployment import selector


def budget(deployment: ModelDeployment, context: Context) -> Manifest | None:
    """None for a single replica, or several that have to be on one node: it would only keep that from being drained.

    One pod that is not ready is one group that serves nothing, so the budget counts in whole groups: a second pod goes
    only once the first one's group is back. Pods that are not ready anyway hold up nothing.
    """
    if _most_replicas(deployment.spec) < 2 or context.pin.one_node:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployment, context, deployment.name, "engine"),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(deployment)},
        },
    }


def _most_replicas(spec: Spec) -> int:
    return spec.autoscaling.max if spec.autoscaling else spec.first_replicas
