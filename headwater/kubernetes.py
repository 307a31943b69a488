"""How Headwater's objects on Kubernetes are called and labelled: what operator and router must agree on."""

from typing import Final

GROUP: Final = "headwater.dev"
VERSION: Final = "v1alpha1"
PLURAL: Final = "modeldeployments"
FIELD_MANAGER: Final = "headwater-operator"

LABEL_DEPLOYMENT: Final = "headwater.dev/deployment"
"""Name of the ModelDeployment, on all that was made for it."""
LABEL_BACKEND: Final = "headwater.dev/backend"
"""The server that runs in a pod."""
LABEL_REVISION: Final = "headwater.dev/revision"
"""Which state of the spec a pod was made from."""
LABEL_GROUP: Final = "headwater.dev/group"
"""Number of the replica that a pod is a part of, where a replica is several pods."""
LABEL_WEIGHTS: Final = "headwater.dev/weights"
"""Name of the claim with the weights that a pod mounts."""
LABEL_UNUSED: Final = "headwater.dev/unused"
"""On a claim with weights that no ModelDeployment asks for."""
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "headwater"

HTTP_PORT: Final = 8000
EVENTS_PORT: Final = 5557
"""Of data-parallel rank 0; each other one has the next."""
REPLAY_PORT: Final = 5757
"""Where KV events are repeated, by rank in the same way."""
MOST_RANKS: Final = 64
"""Data-parallel ranks of one pod whose KV events are followed."""
FETCH_PORT: Final = 8001
"""Where the Job that fetches weights tells how far it is."""
FETCH_PORT_VARIABLE: Final = "HEADWATER_FETCH_PROGRESS_PORT"
"""By which it is told so: a flag would end images that are older than it."""
HTTP_PORT_NAME: Final = "http"
EVENTS_PORT_NAME: Final = "kv-events"
REPLAY_PORT_NAME: Final = "kv-replay"
ADMIN_PORT_NAME: Final = "admin"
"""Of the routers: where they tell their metrics."""
CONTAINER: Final = "engine"
"""The container of the server, as `spec.template` refers to it."""
FETCHER: Final = "fetch"
BUILDER: Final = "build"
"""The containers of the Jobs that fetch weights, and that build an engine."""
LOAD_METRICS: Final = frozenset(
    {
        "headwater_router_deployment_in_flight",
        "headwater_router_deployment_held",
        "headwater_router_deployment_ready_endpoints",
        "headwater_router_deployment_share",
        "headwater_router_endpoint_in_flight",
    }
)
"""Of the routers' metrics those that replicas are scaled by, and that tell what can be reached."""
ADMIN_SECRET_KEY: Final = "key"
"""Where in a ModelDeployment's `admin_secret` the key is."""


def engine_service(deployment: str) -> str:
    """Name of the Service whose EndpointSlices list a ModelDeployment's endpoints."""
    return f"{deployment}-engine"


def admin_secret(deployment: str) -> str:
    """Name of the Secret with the key that a ModelDeployment's servers ask for before they are changed."""
    return f"{deployment}-admin"


def workers_service(deployment: str) -> str:
    """Name of the headless Service through which the pods of a group find one another."""
    return f"{deployment}-workers"
