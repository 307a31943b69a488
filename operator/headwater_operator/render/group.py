"""The StatefulSet of one group: a replica that is several pods, which live and die together.

The operator makes and removes groups one by one and never changes one, so the set updates no pod by itself.
"""

from headwater.kubernetes import LABEL_GROUP, LABEL_REVISION, workers_service
from headwater.resource import ModelDeployment
from headwater_operator.render.context import Context, Manifest
from headwater_operator.render.deployment import selector, workload_metadata
from headwater_operator.render.names import group_name
from headwater_operator.render.pin import revision
from headwater_operator.render.versions import pod_template


def render_group(deployment: ModelDeployment, context: Context, number: int) -> Manifest:
    own = {LABEL_REVISION: revision(deployment, context.pin), LABEL_GROUP: str(number)}
    metadata = workload_metadata(deployment, context, group_name(deployment, context.pin, number))
    metadata["labels"] |= own
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {
            "replicas": deployment.spec.parallelism.nodes,
            "serviceName": workers_service(deployment.name),
            "podManagementPolicy": "Parallel",  # no rank is ready before all are there
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": selector(deployment) | own},
            "template": pod_template(deployment, context, number),
        },
    }
