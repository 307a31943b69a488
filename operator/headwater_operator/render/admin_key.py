"""The Secret with the key that a deployment's servers ask for before their adapters or their cache are touched."""

from headwater import kubernetes
from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import without_absent
from headwater_operator.render.context import Context, Manifest, metadata


def admin_secret(deployment: ModelDeployment, context: Context, key: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": without_absent(metadata(deployment, context, kubernetes.admin_secret(deployment.name), "engine")),
        "immutable": True,  # servers read it when they start
        "stringData": {kubernetes.ADMIN_SECRET_KEY: key},
    }
