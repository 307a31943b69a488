"""Pods tried on the API server before they are made: weights may take an hour to come, a typo shows at once."""

from dataclasses import replace

from headwater_operator import render
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.kinds import DEPLOYMENT, Key, without_absent
from headwater_operator.reconcile import weights
from headwater_operator.reconcile.reconciliation import Reconciliation
from headwater_operator.render import Context, Manifest


class DryRun:
    """Once for each revision."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._passed: dict[Key, str] = {}

    async def run(self, work: Reconciliation, context: Context) -> None:
        """Raises ResourceError, and ApiError where the API server would refuse the pods."""
        revision = work.situation.revision
        if self._passed.get(work.key) == revision:
            return
        workload = _workload(work, context)
        await self._cluster.try_out(workload | {"metadata": without_absent(workload["metadata"])})
        self._passed[work.key] = revision

    def forget(self, key: Key) -> None:
        self._passed.pop(key, None)


def _workload(work: Reconciliation, context: Context) -> Manifest:
    """As it will be once all is there that it mounts."""
    deployment = work.deployment
    if context.weights is None and weights.needs_volume(deployment):
        context = replace(context, weights=render.volume(deployment))
    if render.render_build(deployment, context):
        context = replace(context, build_claim=render.build_name(deployment, context.pin))
    if deployment.spec.parallelism.nodes > 1:
        return render.render_group(deployment, context, 0)
    return next(each for each in render.render(deployment, context) if each["kind"] == DEPLOYMENT.name)
