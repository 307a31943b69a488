"""From the spec to objects: what there should be is rendered and applied, and what should not be any more goes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import structlog

from headwater.kubernetes import LABEL_REVISION, admin_secret
from headwater.pick import resolve_auto
from headwater_operator import render
from headwater_operator.autoscaling.decide import ScaleDecision
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.cluster.admin_keys import AdminKeys
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.events import EventRecorder
from headwater_operator.cluster.kinds import (
    BUDGET,
    DEPLOYMENT,
    NETWORK_POLICY,
    SERVICE,
    STATEFUL_SET,
    Key,
    Object,
    annotations_of,
    labels_of,
    orphaned,
    owned_by,
    uid_of,
)
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose import reach
from headwater_operator.diagnose.ceiling import beyond, capped, most_replicas
from headwater_operator.diagnose.pods import EnginePod, Problem
from headwater_operator.diagnose.startup import Startup, pods_without_containers, waiting
from headwater_operator.diagnose.workloads import of_workload
from headwater_operator.reconcile import group_plan, rollout
from headwater_operator.reconcile.adapters import Adapters
from headwater_operator.reconcile.applier import Applier
from headwater_operator.reconcile.dry_run import DryRun
from headwater_operator.reconcile.groups import Groups
from headwater_operator.reconcile.healing import Healing
from headwater_operator.reconcile.prerequisites import PrerequisiteMissingError, Prerequisites
from headwater_operator.reconcile.reconciliation import Reconciliation
from headwater_operator.reconcile.replicas import Replicas
from headwater_operator.render import Context, Pin
from headwater_operator.render.weights import volume
from headwater_operator.watch.store import Store

log = structlog.get_logger(__name__)

_PRUNED: Final = (DEPLOYMENT, SERVICE, BUDGET, NETWORK_POLICY)
"""Kinds of which nothing may be left that the spec no longer asks for. StatefulSets are planned one by one."""


class Children:
    def __init__(
        self,
        settings: OperatorSettings,
        cluster: Cluster,
        store: Store,
        applier: Applier,
        recorder: EventRecorder,
        scaling: Scaling,
        prerequisites: Prerequisites,
        adapters: Adapters,
        keys: AdminKeys,
        healing: Healing,
        startup: Startup,
    ) -> None:
        self._settings = settings
        self._store = store
        self._applier = applier
        self._recorder = recorder
        self._scaling = scaling
        self._prerequisites = prerequisites
        self._adapters = adapters
        self._keys = keys
        self._endings = rollout.Endings()
        self._replicas = Replicas(cluster, store, applier, recorder, scaling, self._endings)
        self._dry_run = DryRun(cluster)
        self._groups = Groups(applier, self._dry_run, healing, scaling, self._endings)
        self._startup = startup
        self._claims = render.ClaimDefaults.of(settings)
        self._access = render.Access.of(settings)
        self._inherited = render.Inherited.of(settings)

    async def apply(self, work: Reconciliation) -> None:
        """Bring the cluster a step closer to the spec.

        Raises PrerequisiteMissingError, ResourceError, NotOursError, StillGoingError, ApiError.
        """
        spec, situation = work.deployment.spec, work.situation
        workloads = self._workloads(work)
        situation.autoscaled = spec.autoscaling is not None
        decision = self._decision(work, workloads)
        most = most_replicas(spec, self._settings.max_replicas)
        situation.wanted = decision.desired if decision else min(spec.first_replicas, most)
        situation.flaw = situation.flaw or beyond(spec, self._settings.max_replicas)
        self._count(work, workloads)  # for the status, should the spec be refused from here on
        pin = self._pin(work, workloads)
        revision = render.revision(work.deployment, pin)
        situation.revision, situation.backend, situation.render_version = revision, pin.backend, pin.render_version
        self._count(work, workloads)
        situation.problem = await self._problem(work, workloads) or self._out_of_reach(work, pin)
        context = Context(
            namespace=work.key.namespace,
            uid=work.uid,
            pin=pin,
            weights=None,
            build_claim=None,
            strategy="Surge",
            replicas=situation.wanted,
            paused=spec.rollout.paused,
            claims=self._claims,
            access=self._access,
            inherited=self._inherited,
        )
        try:
            context = dataclasses.replace(context, weights=await self._prerequisites.weights(work, pin))
            context = dataclasses.replace(context, build_claim=await self._prerequisites.build(work, context))
        except PrerequisiteMissingError:
            await self._replicas.scale_what_runs(work, workloads, decision)
            await self._dry_run.run(work, context)
            raise
        await self._put_key(work, context, workloads)
        situation.paused = spec.rollout.paused
        if spec.parallelism.nodes == 1:
            await self._replicas.apply(work, context, workloads, decision)
        else:
            await self._groups.apply(work, context, workloads)
        if not workloads and self._workloads(work):
            await self._warn_of_drains(work, context)
        await self._prune(work)
        self._tell_of_contests(work)
        await self._adapters.keep(work, context.backend)

    def forget(self, key: Key) -> None:
        """Of a ModelDeployment that is gone."""
        self._scaling.forget(key)
        self._adapters.forget(key)
        self._endings.forget(key)
        self._dry_run.forget(key)

    # What there is

    def _workloads(self, work: Reconciliation) -> list[Object]:
        found = [*self._store.of(work.key, DEPLOYMENT), *self._store.of(work.key, STATEFUL_SET)]
        return [workload for workload in found if owned_by(workload, work.uid) or orphaned(workload)]

    def _decision(self, work: Reconciliation, workloads: Sequence[Object]) -> ScaleDecision | None:
        rule = work.deployment.spec.autoscaling
        if rule is None:
            self._scaling.forget(work.key)
            return None
        rule = capped(rule, most_replicas(work.deployment.spec, self._settings.max_replicas))
        known: dict[str, Any] = (work.resource.get("status") or {}).get("autoscaling") or {}
        current = known.get("desired")
        if current is None:
            # Autoscaling is new here; what runs is where it begins.
            if not workloads:
                self._scaling.forget(work.key)  # what is known is of an earlier resource of this name
            live = _replicas(workloads)
            current = live if live is not None else rule.min
        decision = self._scaling.follow(work.key, rule, current, known.get("memory"))
        work.situation.extra["autoscaling"] = {
            "desired": decision.desired,
            "reason": decision.reason if decision.desired != known.get("desired") else known.get("reason"),
            "memory": decision.memory.written(),
        }
        return decision

    def _pin(self, work: Reconciliation, workloads: Sequence[Object]) -> Pin:
        """That of the workload which was made from this very spec; else what this operator chooses."""
        spec = work.deployment.spec
        current = render.spec_hash(spec)
        for workload in workloads:
            if (pin := render.pinned(annotations_of(workload), current)) is not None:
                return pin
        backend = resolve_auto(work.deployment) if spec.backend.type == "auto" else spec.backend.type
        one_node = self._prerequisites.reaches_one_node(work.key.namespace, work.deployment)
        shared = self._prerequisites.shared(work.deployment)
        return render.wanted_pin(work.deployment, backend, self._settings, one_node=one_node, shared=shared)

    def _out_of_reach(self, work: Reconciliation, pin: Pin) -> Problem | None:
        """Replicas that the volume with their weights does not reach."""
        if pin.shared or not self._prerequisites.reaches_one_node(work.key.namespace, work.deployment):
            return None
        claim = volume(work.deployment).claim
        found, again = reach.problem(claim, work.pods, work.situation.revision, work.now)
        work.requeue_after(again)
        return found

    def _count(self, work: Reconciliation, workloads: Sequence[Object]) -> None:
        it = work.situation
        if work.deployment.spec.parallelism.nodes == 1:
            pods = [pod for pod in work.pods if not pod.terminating]
            it.total = len(pods)
            it.updated = sum(pod.revision == it.revision for pod in pods)
            it.ready = sum(pod.ready for pod in pods)
            current = [pod for pod in pods if pod.revision == it.revision]
            it.ready_updated = sum(pod.ready and not pod.unsteady(work.now) for pod in current)
        else:
            found = group_plan.gather([each for each in workloads if each["kind"] == STATEFUL_SET.name], work.pods)
            it.total = len(found)
            it.updated = sum(group.revision == it.revision for group in found)
            it.ready = sum(group.ready for group in found)
            current_groups = [group for group in found if group.revision == it.revision]
            it.ready_updated = sum(group.ready and not group.unsteady(work.now) for group in current_groups)

    async def _problem(self, work: Reconciliation, workloads: Sequence[Object]) -> Problem | None:
        """Of the current revision: what old pods suffer from is about to pass."""
        revision = work.situation.revision
        pods = [pod for pod in work.pods if pod.revision == revision and not pod.terminating]
        for left in filter(None, (pod.unsteady(work.now) for pod in pods)):
            work.requeue_after(left)
        sets = [each for each in workloads if labels_of(each).get(LABEL_REVISION) == revision]
        those = pods_without_containers(pods) + [waiting(each) for each in sets if _lacks_pods(each, work.pods)]
        held_up, again = await self._startup.problem(work.key.namespace, those, work.now)
        work.requeue_after(again)
        return (
            next((pod.problem for pod in pods if pod.problem), None)
            or next((pod.died.problem for pod in pods if pod.died and pod.unsteady(work.now)), None)
            or held_up
            or next(filter(None, (of_workload(each, pods) for each in workloads)), None)
        )

    async def _put_key(self, work: Reconciliation, context: Context, workloads: Sequence[Object]) -> None:
        """Before the first pods that need it, and again where pods say that it is gone: nobody watches Secrets."""
        pin, problem = context.pin, work.situation.problem
        told = any(annotations_of(each).get(render.PIN_ANNOTATION) == pin.to_json() for each in workloads)
        missed = (
            problem is not None and problem.reason == "ConfigMissing" and admin_secret(work.key.name) in problem.message
        )
        if pin.asks_for_admin_key and (missed or not told):
            key = await self._keys.of(work.key)
            await self._keys.put(render.admin_secret(work.deployment, context, key))

    async def _warn_of_drains(self, work: Reconciliation, context: Context) -> None:
        """Once, when the first workload is made."""
        if not any(manifest["kind"] == BUDGET.name for manifest in render.render(work.deployment, context)):
            message = "there is one replica, so whoever drains its node interrupts the service; two get a budget"
            if context.pin.one_node:
                message = "the volume keeps all replicas on one node: whoever drains that interrupts the service"
            await self._recorder.record(work.resource, "Warning", "NoDisruptionBudget", message)

    # What should not be any more

    def _tell_of_contests(self, work: Reconciliation) -> None:
        if (held_back := self._applier.contests.held_back(work.uid)) is not None:
            message, left = held_back
            work.requeue_after(left)
            work.situation.flaw = work.situation.flaw or Problem("Contested", message)

    async def _prune(self, work: Reconciliation) -> None:
        for kind in _PRUNED:
            for manifest in self._store.of(work.key, kind):
                if owned_by(manifest, work.uid) and not work.keeps(kind, manifest):
                    await self._applier.prune(manifest, work.uid)


def _replicas(workloads: Sequence[Object]) -> int | None:
    """How many there are, or are to be; None before there are any."""
    for workload in workloads:
        if workload["kind"] == DEPLOYMENT.name:
            return int(workload["spec"].get("replicas", 1))
    revisions = Counter(labels_of(each).get(LABEL_REVISION) for each in workloads)
    return max(revisions.values(), default=None)


def _lacks_pods(workload: Object, pods: Sequence[EnginePod]) -> bool:
    """Of a StatefulSet: its controller has no condition for what it is refused, as that of Deployments has."""
    if workload["kind"] != STATEFUL_SET.name or "deletionTimestamp" in workload["metadata"]:
        return False
    return sum(pod.owner == uid_of(workload) for pod in pods) < int(workload["spec"]["replicas"])
