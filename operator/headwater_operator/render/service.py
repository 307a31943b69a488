"""The Services: one lists the endpoints of a deployment, one lets the pods of a group find one another."""

from typing import Final

from headwater.kubernetes import (
    EVENTS_PORT,
    EVENTS_PORT_NAME,
    HTTP_PORT,
    HTTP_PORT_NAME,
    REPLAY_PORT,
    REPLAY_PORT_NAME,
    engine_service,
    workers_service,
)
from headwater.resource import ModelDeployment
from headwater_operator.render.context import Context, Manifest, metadata
from headwater_operator.render.deployment import selector

_RANK_0: Final = {"apps.kubernetes.io/pod-index": "0"}


def endpoints(deployment: ModelDeployment, context: Context) -> Manifest:
    """Lists what takes requests: every replica, of a group its rank 0."""
    ports = [_port(HTTP_PORT_NAME, HTTP_PORT)]
    if context.pin.publishes_kv_events:
        ports.append(_port(EVENTS_PORT_NAME, EVENTS_PORT))
    if context.pin.repeats_kv_events:
        ports.append(_port(REPLAY_PORT_NAME, REPLAY_PORT))
    grouped = deployment.spec.parallelism.nodes > 1
    spec = {"selector": selector(deployment) | (_RANK_0 if grouped else {}), "ports": ports}
    return _service(deployment, context, engine_service(deployment.name), spec)


def workers(deployment: ModelDeployment, context: Context) -> Manifest:
    """Headless; names pods that are not ready, since none is before they have found one another."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(deployment)}
    return _service(deployment, context, workers_service(deployment.name), spec, component="workers")


def _service(
    deployment: ModelDeployment, context: Context, name: str, spec: Manifest, component: str = "engine"
) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, context, name, component),
        "spec": spec,
    }


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}
