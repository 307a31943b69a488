"""Replicas of several pods each: one StatefulSet a group, made and taken as `group_plan` says."""

from collections.abc import Sequence

from headwater_operator import render
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.cluster.kinds import STATEFUL_SET, Object, name_of
from headwater_operator.diagnose.pods import Problem
from headwater_operator.diagnose.workloads import too_late
from headwater_operator.reconcile import group_plan, rollout
from headwater_operator.reconcile.applier import Applier
from headwater_operator.reconcile.dry_run import DryRun
from headwater_operator.reconcile.group_plan import Group
from headwater_operator.reconcile.healing import Healing
from headwater_operator.reconcile.reconciliation import Reconciliation
from headwater_operator.render import Context
from headwater_operator.render.deployment import progress_deadline


class Groups:
    def __init__(
        self, applier: Applier, dry_run: DryRun, healing: Healing, scaling: Scaling, endings: rollout.Endings
    ) -> None:
        self._applier = applier
        self._dry_run = dry_run
        self._healing = healing
        self._scaling = scaling
        self._endings = endings

    async def apply(self, work: Reconciliation, context: Context, workloads: Sequence[Object]) -> None:
        it, spec = work.situation, work.deployment.spec
        render.render_group(work.deployment, context, 0)  # for what cannot be, no old group goes
        found = group_plan.gather([each for each in workloads if each["kind"] == STATEFUL_SET.name], work.pods)
        ending = group_plan.ending(found, work.pods, work.now)
        plan = group_plan.plan(
            found,
            work.pods,
            wanted=it.wanted,
            revision=it.revision,
            strategy=spec.rollout.strategy,
            load=self._scaling.pods,
            now=work.now,
            quiet_since=self._endings.quiet_since(work.key, ending, work.now),
            paused=spec.rollout.paused,
        )
        work.requeue_after(plan.requeue_after)
        if plan.no_room:
            it.rollout = "NoRoomForSurge", f"an old group stops before a new one starts: {plan.no_room}"
        exhausted = next((group for group in work.exhausted if group.revision == it.revision), None)
        if exhausted is not None and it.problem is None:
            name = name_of(exhausted.workload)
            it.problem = Problem(
                "GroupRestartsExhausted",
                f"StatefulSet {name} was restarted {exhausted.restarts} times and is left as it is; "
                f"kubectl logs of its pods shows why; deleting it begins anew",
            )
        current = [group for group in found if group.revision == it.revision]
        it.problem = it.problem or _crash_loop(work, current) or _too_late(work, current)
        if plan.delete and not current:
            await self._dry_run.run(work, context)  # nor for what the API server refuses
        for manifest in render.render(work.deployment, context):
            work.keep(manifest)
            await self._applier.apply(manifest, work.uid)
        for group in current:
            if group in plan.delete:
                continue
            await self._applier.apply(render.render_group(work.deployment, context, group.number), work.uid)
        await self._carry_out(work, context, plan)

    async def _carry_out(self, work: Reconciliation, context: Context, plan: group_plan.GroupPlan) -> None:
        for group in plan.delete:
            await self._applier.delete(group.workload)
        for number in plan.create:
            await self._applier.apply(render.render_group(work.deployment, context, number), work.uid)
        for group, notes in plan.notes:
            await self._healing.note(group.workload, notes)


def _too_late(work: Reconciliation, current: Sequence[Group]) -> Problem | None:
    """As the controller of Deployments says it of theirs."""
    for group in current:
        if group.ready or (since := group.loading_since) is None:
            continue
        left = progress_deadline(work.deployment.spec) - (work.now - since).total_seconds()
        if left <= 0:
            return too_late(group.pods)
        work.requeue_after(left)
    return None


def _crash_loop(work: Reconciliation, current: Sequence[Group]) -> Problem | None:
    """Also while all run: one that ends every few minutes looks healthy in between."""
    unsteady = {group.number: left for group in current if (left := group.unsteady(work.now))}
    for left in unsteady.values():
        work.requeue_after(left)
    worst = next((group for group in current if group.number in unsteady), None)
    if worst is None:
        return None
    return Problem(
        "CrashLoop",
        f"all pods of {name_of(worst.workload)} began anew {worst.restarts} times, last after {worst.last_words}; "
        "kubectl logs --previous shows why",
    )
