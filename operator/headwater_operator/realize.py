"""From the spec to objects: what there should be is rendered and applied, and what should not be any more goes.

Who counts the replicas: the spec; or, with `autoscaling`, the load. In the latter case `spec.replicas` of the
Deployment is owned by a field manager of its own and is not in what is applied here.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import structlog

from headwater.kubernetes import LABEL_REVISION, admin_secret
from headwater.pick import resolve_auto
from headwater_operator import groups, reach, render, rollout
from headwater_operator.adapting import Adapting
from headwater_operator.admin_keys import AdminKeys
from headwater_operator.api import Cluster
from headwater_operator.applier import AUTOSCALER, Applier
from headwater_operator.autoscale import ScaleDecision
from headwater_operator.ceiling import beyond, capped
from headwater_operator.config import OperatorSettings
from headwater_operator.events import EventRecorder
from headwater_operator.gateway import deletion_costs
from headwater_operator.healing import Healing
from headwater_operator.kinds import (
    BUDGET,
    DEPLOYMENT,
    NETWORK_POLICY,
    POD,
    SERVICE,
    STATEFUL_SET,
    Object,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    orphaned,
    owned_by,
)
from headwater_operator.look import Look
from headwater_operator.pods import EnginePod, Problem
from headwater_operator.preparing import NotPreparedError, Preparing
from headwater_operator.queue import Key
from headwater_operator.render import Context, Pin
from headwater_operator.render.weights import volume
from headwater_operator.scaling import Scaling
from headwater_operator.starting import Starting
from headwater_operator.store import Store
from headwater_operator.trial import Trial

log = structlog.get_logger(__name__)

_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_PRUNED: Final = (DEPLOYMENT, SERVICE, BUDGET, NETWORK_POLICY)
"""Kinds of which nothing may be left that the spec no longer asks for. StatefulSets are planned one by one."""


class Realizer:
    def __init__(
        self,
        settings: OperatorSettings,
        cluster: Cluster,
        store: Store,
        applier: Applier,
        recorder: EventRecorder,
        scaling: Scaling,
        preparing: Preparing,
        adapting: Adapting,
        keys: AdminKeys,
        healing: Healing,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._store = store
        self._applier = applier
        self._recorder = recorder
        self._scaling = scaling
        self._preparing = preparing
        self._adapting = adapting
        self._keys = keys
        self._healing = healing
        self._endings = rollout.Endings()
        self._starting = Starting(cluster)
        self._trial = Trial(cluster)
        self._claims = render.ClaimDefaults.of(settings)
        self._access = render.Access.of(settings)
        self._inherited = render.Inherited.of(settings)

    async def realize(self, look: Look) -> None:
        """Bring the cluster a step closer to the spec.

        Raises NotPreparedError, ResourceError, NotOursError, StillGoingError, ApiError.
        """
        spec, situation = look.deployment.spec, look.situation
        workloads = self._workloads(look)
        situation.autoscaled = spec.autoscaling is not None
        decision = self._decision(look, workloads)
        most = self._settings.max_replicas
        situation.wanted = decision.desired if decision else min(spec.first_replicas, most)
        situation.flaw = situation.flaw or beyond(spec, most)
        self._count(look, workloads)  # for the status, should the spec be refused from here on
        pin = self._pin(look, workloads)
        revision = render.revision(look.deployment, pin)
        situation.revision, situation.backend, situation.render_version = revision, pin.backend, pin.render_version
        self._count(look, workloads)
        situation.problem = await self._problem(look, workloads) or self._out_of_reach(look)
        context = Context(
            namespace=look.key.namespace,
            uid=look.uid,
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
            context = dataclasses.replace(context, weights=await self._preparing.weights(look))
            context = dataclasses.replace(context, build_claim=await self._preparing.build(look, context))
        except NotPreparedError:
            await self._scale_what_runs(look, workloads, decision)
            await self._trial.run(look, context)
            raise
        await self._put_key(look, context, workloads)
        situation.paused = spec.rollout.paused
        if spec.parallelism.nodes == 1:
            await self._realize_pods(look, context, workloads, decision)
        else:
            await self._realize_groups(look, context, workloads)
        if not workloads and self._workloads(look):
            await self._warn_of_drains(look, context)
        await self._prune(look)
        await self._adapting.keep(look, context.backend)

    def forget(self, key: Key) -> None:
        """Of a ModelDeployment that is gone."""
        self._scaling.forget(key)
        self._adapting.forget(key)
        self._endings.forget(key)
        self._starting.forget(key)
        self._trial.forget(key)

    # What there is

    def _workloads(self, look: Look) -> list[Object]:
        found = [*self._store.of(look.key, DEPLOYMENT), *self._store.of(look.key, STATEFUL_SET)]
        return [workload for workload in found if owned_by(workload, look.uid) or orphaned(workload)]

    def _decision(self, look: Look, workloads: Sequence[Object]) -> ScaleDecision | None:
        rule = look.deployment.spec.autoscaling
        if rule is None:
            self._scaling.forget(look.key)
            return None
        rule = capped(rule, self._settings.max_replicas)
        known: dict[str, Any] = (look.resource.get("status") or {}).get("autoscaling") or {}
        current = known.get("desired")
        if current is None:
            # Autoscaling is new here; what runs is where it begins.
            if not workloads:
                self._scaling.forget(look.key)  # what is known is of an earlier resource of this name
            live = _replicas(workloads)
            current = live if live is not None else rule.min
        decision = self._scaling.follow(look.key, rule, current, known.get("memory"))
        look.situation.extra["autoscaling"] = {
            "desired": decision.desired,
            "reason": decision.reason if decision.desired != known.get("desired") else known.get("reason"),
            "memory": decision.memory.written(),
        }
        return decision

    def _pin(self, look: Look, workloads: Sequence[Object]) -> Pin:
        """That of the workload which was made from this very spec; else what this operator chooses."""
        spec = look.deployment.spec
        current = render.spec_hash(spec)
        for workload in workloads:
            if (pin := render.pinned(annotations_of(workload), current)) is not None:
                return pin
        backend = resolve_auto(look.deployment) if spec.backend.type == "auto" else spec.backend.type
        one_node = self._preparing.reaches_one_node(look.key.namespace, look.deployment)
        return render.wanted_pin(look.deployment, backend, self._settings, one_node=one_node)

    def _out_of_reach(self, look: Look) -> Problem | None:
        """Replicas that the volume with their weights does not reach."""
        if not self._preparing.reaches_one_node(look.key.namespace, look.deployment):
            return None
        claim = volume(look.deployment).claim
        found, again = reach.problem(claim, look.pods, look.situation.revision, look.now)
        look.look_again(again)
        return found

    def _count(self, look: Look, workloads: Sequence[Object]) -> None:
        it = look.situation
        if look.deployment.spec.parallelism.nodes == 1:
            pods = [pod for pod in look.pods if not pod.terminating]
            it.total = len(pods)
            it.updated = sum(pod.revision == it.revision for pod in pods)
            it.ready = sum(pod.ready for pod in pods)
            current = [pod for pod in pods if pod.revision == it.revision]
            it.ready_updated = sum(pod.ready and not pod.unsteady(look.now) for pod in current)
        else:
            found = groups.gather([each for each in workloads if each["kind"] == STATEFUL_SET.name], look.pods)
            it.total = len(found)
            it.updated = sum(group.revision == it.revision for group in found)
            it.ready = sum(group.ready for group in found)
            it.ready_updated = sum(group.ready and group.revision == it.revision for group in found)

    async def _problem(self, look: Look, workloads: Sequence[Object]) -> Problem | None:
        """Of the current revision: what old pods suffer from is about to pass."""
        revision = look.situation.revision
        pods = [pod for pod in look.pods if pod.revision == revision and not pod.terminating]
        for left in filter(None, (pod.unsteady(look.now) for pod in pods)):
            look.look_again(left)
        return (
            next((pod.problem for pod in pods if pod.problem), None)
            or next((pod.died.problem for pod in pods if pod.died and pod.unsteady(look.now)), None)
            or await self._starting.problem(look, pods)
            or next(filter(None, (_of_workload(each, pods) for each in workloads)), None)
        )

    async def _put_key(self, look: Look, context: Context, workloads: Sequence[Object]) -> None:
        """Before the first pods that need it, and again where pods say that it is gone: nobody watches Secrets."""
        pin, problem = context.pin, look.situation.problem
        told = any(annotations_of(each).get(render.PIN_ANNOTATION) == pin.to_json() for each in workloads)
        missed = (
            problem is not None and problem.reason == "ConfigMissing" and admin_secret(look.key.name) in problem.message
        )
        if pin.asks_for_admin_key and (missed or not told):
            key = await self._keys.of(look.key)
            await self._keys.put(render.admin_secret(look.deployment, context, key))

    async def _warn_of_drains(self, look: Look, context: Context) -> None:
        """Once, when the first workload is made."""
        if not any(manifest["kind"] == BUDGET.name for manifest in render.render(look.deployment, context)):
            message = "there is one replica, so whoever drains its node interrupts the service; two get a budget"
            if context.pin.one_node:
                message = "the volume keeps all replicas on one node: whoever drains that interrupts the service"
            await self._recorder.record(look.resource, "Warning", "NoDisruptionBudget", message)

    # One pod a replica

    async def _realize_pods(
        self, look: Look, context: Context, workloads: Sequence[Object], decision: ScaleDecision | None
    ) -> None:
        workload = next((each for each in workloads if each["kind"] == DEPLOYMENT.name), None)
        choice = rollout.choose(
            look.deployment.spec.rollout.strategy,
            workload,
            look.pods,
            look.situation.revision,
            look.now,
            self._endings.quiet_since(look.key, rollout.ending(look.pods, look.now), look.now),
        )
        look.situation.rollout = choice.reason, choice.message
        look.look_again(choice.look_again)
        if workload is not None:
            await self._prepare_scale_down(look, workload, look.situation.wanted)
        replicas: int | None = look.situation.wanted
        if decision is not None and workload is not None:
            replicas = None  # the autoscaler's from here on
            if workload["spec"].get("replicas") != decision.desired or not _autoscaler_owns(workload):
                await self._scale(look, workload, decision)
        context = dataclasses.replace(context, strategy=choice.strategy, replicas=replicas)
        for manifest in render.render(look.deployment, context):
            look.keep(manifest)
            await self._applier.apply(manifest, look.uid)

    async def _scale_what_runs(self, look: Look, workloads: Sequence[Object], decision: ScaleDecision | None) -> None:
        """What the load asks for does not wait for what the next revision needs, which may take an hour."""
        workload = next((each for each in workloads if each["kind"] == DEPLOYMENT.name), None)
        if decision is not None and workload is not None and workload["spec"].get("replicas") != decision.desired:
            await self._prepare_scale_down(look, workload, decision.desired)
            await self._scale(look, workload, decision)

    async def _scale(self, look: Look, workload: Object, decision: ScaleDecision) -> None:
        before = workload["spec"].get("replicas")
        await self._applier.scale(workload, decision.desired)
        if before != decision.desired:
            message = f"from {before} to {decision.desired} replicas: {decision.reason}"
            await self._recorder.record(look.resource, "Normal", "Scaled", message)

    async def _prepare_scale_down(self, look: Look, workload: Object, wanted: int) -> None:
        """Have the ReplicaSet take the idlest: it goes by this annotation where all else is equal."""
        if workload["spec"].get("replicas", 1) <= wanted or wanted == 0:
            return
        pods = [pod for pod in self._store.of(look.key, POD) if "deletionTimestamp" not in pod["metadata"]]
        costs = deletion_costs(pods, self._scaling.pods)
        for pod in pods:
            cost = str(costs[name_of(pod)])
            if annotations_of(pod).get(_DELETION_COST) != cost:
                patch = {"metadata": {"annotations": {_DELETION_COST: cost}}}
                await self._cluster.patch(POD, namespace_of(pod), name_of(pod), patch)

    # Several pods a replica

    async def _realize_groups(self, look: Look, context: Context, workloads: Sequence[Object]) -> None:
        it, spec = look.situation, look.deployment.spec
        render.render_group(look.deployment, context, 0)  # for what cannot be, no old group goes
        found = groups.gather([each for each in workloads if each["kind"] == STATEFUL_SET.name], look.pods)
        ending = groups.ending(found, look.pods, look.now)
        plan = groups.plan(
            found,
            look.pods,
            wanted=it.wanted,
            revision=it.revision,
            strategy=spec.rollout.strategy,
            load=self._scaling.pods,
            now=look.now,
            quiet_since=self._endings.quiet_since(look.key, ending, look.now),
            paused=spec.rollout.paused,
        )
        look.look_again(plan.look_again)
        if plan.no_room:
            it.rollout = "NoRoomForSurge", f"an old group stops before a new one starts: {plan.no_room}"
        exhausted = next((group for group in look.exhausted if group.revision == it.revision), None)
        if exhausted is not None and it.problem is None:
            name = name_of(exhausted.workload)
            it.problem = Problem(
                "GroupRestartsExhausted",
                f"StatefulSet {name} was restarted {exhausted.restarts} times and is left as it is; "
                f"kubectl logs of its pods shows why; deleting it begins anew",
            )
        for manifest in render.render(look.deployment, context):
            look.keep(manifest)
            await self._applier.apply(manifest, look.uid)
        current = [group for group in found if group.revision == it.revision and group not in plan.delete]
        for group in current:
            await self._applier.apply(render.render_group(look.deployment, context, group.number), look.uid)
        await self._carry_out(look, context, plan)

    async def _carry_out(self, look: Look, context: Context, plan: groups.GroupPlan) -> None:
        for group in plan.delete:
            await self._applier.delete(group.workload)
        for number in plan.create:
            await self._applier.apply(render.render_group(look.deployment, context, number), look.uid)
        for group, notes in plan.notes:
            await self._healing.note(group.workload, notes)

    # What should not be any more

    async def _prune(self, look: Look) -> None:
        for kind in _PRUNED:
            for manifest in self._store.of(look.key, kind):
                if owned_by(manifest, look.uid) and not look.keeps(kind, manifest):
                    log.info("deleting", object=f"{kind.name} {name_of(manifest)}", reason="no longer asked for")
                    await self._applier.delete(manifest)


def _replicas(workloads: Sequence[Object]) -> int | None:
    """How many there are, or are to be; None before there are any."""
    for workload in workloads:
        if workload["kind"] == DEPLOYMENT.name:
            return int(workload["spec"].get("replicas", 1))
    revisions = Counter(labels_of(each).get(LABEL_REVISION) for each in workloads)
    return max(revisions.values(), default=None)


def _autoscaler_owns(workload: Object) -> bool:
    fields = workload["metadata"].get("managedFields") or []
    return any(each.get("manager") == AUTOSCALER for each in fields)


def _of_workload(workload: Object, pods: Sequence[EnginePod]) -> Problem | None:
    """What the Deployment's controller says of pods that are not there, or not ready. `pods`: of this revision."""
    for condition in (workload.get("status") or {}).get("conditions") or []:
        match condition["type"], condition["status"], condition.get("reason"):
            case "ReplicaFailure", "True", _:
                return Problem("PodsRefused", f"the API server takes no pods: {condition.get('message')}")
            case "Progressing", "False", "ProgressDeadlineExceeded":
                if unplaced := next((pod for pod in pods if pod.unschedulable), None):
                    return Problem("Unschedulable", f"no node takes pod {unplaced.name}: {unplaced.unschedulable}")
                return Problem(
                    "LoadTimeout",
                    "no new replica got ready within spec.loadTimeout; the old ones go on. kubectl logs of the new "
                    "pods shows what they do; raise loadTimeout if they only need longer",
                )
    return None
