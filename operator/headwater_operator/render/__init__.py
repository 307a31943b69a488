"""Kubernetes objects out of a ModelDeployment: pure functions, a file a kind.

`render` gives what is applied as a whole, `render_group` one group of a replica that is several pods, `render_build`
what builds a TensorRT-LLM engine. What they are given beside the resource is a Context, and in it the Pin.
"""

from headwater.resource import ModelDeployment
from headwater_operator.render.admin_key import admin_secret
from headwater_operator.render.budget import budget
from headwater_operator.render.build import render_build
from headwater_operator.render.context import (
    Access,
    ClaimDefaults,
    Context,
    Inherited,
    Manifest,
    WeightsVolume,
)
from headwater_operator.render.deployment import deployment as _deployment
from headwater_operator.render.group import render_group
from headwater_operator.render.names import build_name, group_name
from headwater_operator.render.network_policy import network_policy
from headwater_operator.render.pin import (
    CURRENT_RENDER_VERSION,
    PIN_ANNOTATION,
    SPEC_HASH_ANNOTATION,
    Defaults,
    Pin,
    pinned,
    revision,
    spec_hash,
    wanted_pin,
)
from headwater_operator.render.service import endpoints, workers
from headwater_operator.render.storage import MODELS
from headwater_operator.render.versions import RENDERERS
from headwater_operator.render.weights import volume

__all__ = [
    "CURRENT_RENDER_VERSION",
    "MODELS",
    "PIN_ANNOTATION",
    "RENDERERS",
    "SPEC_HASH_ANNOTATION",
    "Access",
    "ClaimDefaults",
    "Context",
    "Defaults",
    "Inherited",
    "Manifest",
    "Pin",
    "WeightsVolume",
    "admin_secret",
    "build_name",
    "group_name",
    "pinned",
    "render",
    "render_build",
    "render_group",
    "revision",
    "spec_hash",
    "volume",
    "wanted_pin",
]


def render(deployment: ModelDeployment, context: Context) -> list[Manifest]:
    """Services, network policy, budget and, where a replica is one pod, the Deployment.

    Raises UnsupportedError and ResourceError.
    """
    grouped = deployment.spec.parallelism.nodes > 1
    objects = [endpoints(deployment, context)]
    if context.access is not None:
        objects.append(network_policy(deployment, context, context.access))  # before there is a pod to reach
    objects += [workers(deployment, context)] if grouped else [_deployment(deployment, context)]
    if (disruptions := budget(deployment, context)) is not None:
        objects.append(disruptions)
    return objects
