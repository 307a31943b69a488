"""Which code makes the pods of which render version."""

from collections.abc import Callable, Mapping
from typing import Final

from headwater.kubernetes import LABEL_COMPONENT, LABEL_DEPLOYMENT, LABEL_MANAGED_BY
from headwater.resource import ModelDeployment, ResourceError
from headwater_operator.render import pod, pod_v1, pod_v2
from headwater_operator.render.context import Context, Manifest
from headwater_operator.render.template import merge

Renderer = Callable[[ModelDeployment, Context, int | None], Manifest]

RENDERERS: Final[Mapping[int, Renderer]] = {1: pod_v1.template, 2: pod_v2.template, 3: pod.template, 4: pod.template}


def pod_template(deployment: ModelDeployment, context: Context, group: int | None = None) -> Manifest:
    """As its version renders it, with `spec.template` over it. Raises UnsupportedError and ResourceError."""
    version = context.pin.render_version
    if version not in RENDERERS:
        raise ResourceError(
            f"{deployment.name}: its pods were made by a newer operator, in render version {version}; this one knows "
            f"{max(RENDERERS)}: run the newer operator, or change the spec to have them made anew"
        )
    rendered = RENDERERS[version](deployment, context, group)
    merged: Manifest = merge(rendered, deployment.spec.template)
    own = {name: value for name, value in rendered["metadata"]["labels"].items() if _is_ours(name)}
    merged.setdefault("metadata", {}).setdefault("labels", {}).update(own)  # the selectors depend on them
    return merged


def _is_ours(label: str) -> bool:
    return label.startswith(LABEL_DEPLOYMENT.partition("/")[0]) or label in (LABEL_COMPONENT, LABEL_MANAGED_BY)
