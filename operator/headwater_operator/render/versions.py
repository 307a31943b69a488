"""Which code makes the pods of which render version."""

from collections.abc import Callable, Mapping
from typing import Final

from headwater.kubernetes import CONTAINER, LABEL_COMPONENT, LABEL_DEPLOYMENT, LABEL_MANAGED_BY
from headwater.resource import ModelDeployment, ResourceError
from headwater_operator.render import pod, pod_v1, pod_v2, pod_v4
from headwater_operator.render.context import Context, Manifest
from headwater_operator.render.template import merge

Renderer = Callable[[ModelDeployment, Context, int | None], Manifest]

RENDERERS: Final[Mapping[int, Renderer]] = {
    1: pod_v1.template,
    2: pod_v2.template,
    3: pod_v4.template,
    4: pod_v4.template,
    5: pod.template,
}


def pod_template(deployment: ModelDeployment, context: Context, group: int | None = None) -> Manifest:
    """As its version renders it, with the platform's template and `spec.template` over it.

    Raises UnsupportedError and ResourceError.
    """
    version = context.pin.render_version
    if version not in RENDERERS:
        raise ResourceError(
            f"{deployment.name}: its pods were made by a newer operator, in render version {version}; this one knows "
            f"{max(RENDERERS)}: run the newer operator, or change the spec to have them made anew"
        )
    rendered = RENDERERS[version](deployment, context, group)
    merged = _merged(rendered, context, deployment)
    own = {name: value for name, value in rendered["metadata"]["labels"].items() if _is_ours(name)}
    merged.setdefault("metadata", {}).setdefault("labels", {}).update(own)  # the selectors depend on them
    return merged


def _merged(rendered: Manifest, context: Context, deployment: ModelDeployment) -> Manifest:
    """Raises ResourceError for a template that cannot be one: the API server could only say that of all of the pod."""
    try:
        merged: Manifest = merge(merge(rendered, context.defaults.template), deployment.spec.template)
    except (AttributeError, TypeError):
        raise ResourceError("spec.template: a list of named things, such as containers, must hold maps") from None
    containers = merged["spec"].get("containers")
    for each in containers if isinstance(containers, list) else []:
        if "image" not in each:
            raise ResourceError(
                f"spec.template.spec.containers: {each.get('name')!r} has no image; the server's container is called "
                f"`{CONTAINER}`, and what is meant for it must say so"
            )
    return merged


def _is_ours(label: str) -> bool:
    return label.startswith(LABEL_DEPLOYMENT.partition("/")[0]) or label in (LABEL_COMPONENT, LABEL_MANAGED_BY)
