"""Replicas of one pod each: a Deployment, whose controller does the work and goes on while the operator is away.

Who counts them: the spec; or, with `autoscaling`, the load. In the latter case `spec.replicas` of the Deployment is
owned by a field manager of its own and is not in what is applied here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

from headwater_operator import render
from headwater_operator.autoscaling.decide import ScaleDecision
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.autoscaling.gateway import deletion_costs
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.events import EventRecorder
from headwater_operator.cluster.kinds import DEPLOYMENT, POD, Object, annotations_of, name_of, namespace_of
from headwater_operator.reconcile import rollout
from headwater_operator.reconcile.applier import AUTOSCALER, Applier
from headwater_operator.reconcile.reconciliation import Reconciliation
from headwater_operator.render import Context
from headwater_operator.watch.store import Store

_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"


class Replicas:
    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        applier: Applier,
        recorder: EventRecorder,
        scaling: Scaling,
        endings: rollout.Endings,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._applier = applier
        self._recorder = recorder
        self._scaling = scaling
        self._endings = endings

    async def apply(
        self, work: Reconciliation, context: Context, workloads: Sequence[Object], decision: ScaleDecision | None
    ) -> None:
        workload = next((each for each in workloads if each["kind"] == DEPLOYMENT.name), None)
        choice = rollout.choose(
            work.deployment.spec.rollout.strategy,
            workload,
            work.pods,
            work.situation.revision,
            work.now,
            self._endings.quiet_since(work.key, rollout.ending(work.pods, work.now), work.now),
        )
        work.situation.rollout = choice.reason, choice.message
        work.requeue_after(choice.requeue_after)
        if workload is not None:
            await self._prepare_scale_down(work, workload, work.situation.wanted)
        replicas: int | None = work.situation.wanted
        if decision is not None and workload is not None:
            replicas = None  # the autoscaler's from here on
            if workload["spec"].get("replicas") != decision.desired or not _autoscaler_owns(workload):
                await self._scale(work, workload, decision)
        context = dataclasses.replace(context, strategy=choice.strategy, replicas=replicas)
        for manifest in render.render(work.deployment, context):
            work.keep(manifest)
            await self._applier.apply(manifest, work.uid)

    async def scale_what_runs(
        self, work: Reconciliation, workloads: Sequence[Object], decision: ScaleDecision | None
    ) -> None:
        """What the load asks for does not wait for what the next revision needs, which may take an hour."""
        workload = next((each for each in workloads if each["kind"] == DEPLOYMENT.name), None)
        if decision is not None and workload is not None and workload["spec"].get("replicas") != decision.desired:
            await self._prepare_scale_down(work, workload, decision.desired)
            await self._scale(work, workload, decision)

    async def _scale(self, work: Reconciliation, workload: Object, decision: ScaleDecision) -> None:
        before = workload["spec"].get("replicas")
        await self._applier.scale(workload, decision.desired)
        if before != decision.desired:
            message = f"from {before} to {decision.desired} replicas: {decision.reason}"
            await self._recorder.record(work.resource, "Normal", "Scaled", message)

    async def _prepare_scale_down(self, work: Reconciliation, workload: Object, wanted: int) -> None:
        """Have the ReplicaSet take the idlest: it goes by this annotation where all else is equal."""
        if workload["spec"].get("replicas", 1) <= wanted or wanted == 0:
            return
        pods = [pod for pod in self._store.of(work.key, POD) if "deletionTimestamp" not in pod["metadata"]]
        costs = deletion_costs(pods, self._scaling.pods)
        for pod in pods:
            cost = str(costs[name_of(pod)])
            if annotations_of(pod).get(_DELETION_COST) != cost:
                patch = {"metadata": {"annotations": {_DELETION_COST: cost}}}
                await self._cluster.patch(POD, namespace_of(pod), name_of(pod), patch)


def _autoscaler_owns(workload: Object) -> bool:
    fields = workload["metadata"].get("managedFields") or []
    return any(each.get("manager") == AUTOSCALER for each in fields)
