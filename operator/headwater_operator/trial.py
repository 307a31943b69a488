"""Pods tried on the API server before they are made: weights may take an hour to come, a typo shows at once."""

from dataclasses import replace

from headwater_operator import render, weights
from headwater_operator.api import Cluster
from headwater_operator.kinds import DEPLOYMENT, without_absent
from headwater_operator.look import Look
from headwater_operator.queue import Key
from headwater_operator.render import Context, Manifest


class Trial:
    """Once for each revision."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._passed: dict[Key, str] = {}

    async def run(self, look: Look, context: Context) -> None:
        """Raises ResourceError, and ApiError where the API server would refuse the pods."""
        revision = look.situation.revision
        if self._passed.get(look.key) == revision:
            return
        workload = _workload(look, context)
        await self._cluster.try_out(workload | {"metadata": without_absent(workload["metadata"])})
        self._passed[look.key] = revision

    def forget(self, key: Key) -> None:
        self._passed.pop(key, None)


def _workload(look: Look, context: Context) -> Manifest:
    """As it will be once all is there that it mounts."""
    deployment = look.deployment
    if weights.needs_volume(deployment):
        context = replace(context, weights=render.volume(deployment))
    if render.render_build(deployment, context):
        context = replace(context, build_claim=render.build_name(deployment, context.pin))
    if deployment.spec.parallelism.nodes > 1:
        return render.render_group(deployment, context, 0)
    return next(each for each in render.render(deployment, context) if each["kind"] == DEPLOYMENT.name)
