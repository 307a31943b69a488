"""What broke while it ran is put right before anything else is looked at.

A group that has lost a member serves nothing until it begins anew. That depends on nothing but what is there, so
neither weights that are fetched nor a spec that is refused hold it up.
"""

from collections.abc import Sequence
from datetime import datetime

from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.events import EventRecorder
from headwater_operator.cluster.kinds import (
    POD,
    STATEFUL_SET,
    Key,
    Object,
    name_of,
    namespace_of,
    orphaned,
    owned_by,
    uid_of,
)
from headwater_operator.diagnose.pods import EnginePod
from headwater_operator.reconcile import group_plan
from headwater_operator.watch.store import Store


class Healing:
    def __init__(self, cluster: Cluster, store: Store, recorder: EventRecorder) -> None:
        self._cluster = cluster
        self._store = store
        self._recorder = recorder

    async def heal(self, key: Key, resource: Object, pods: Sequence[EnginePod], now: datetime) -> group_plan.GroupPlan:
        """Returns what was done; the groups that are beyond healing are in it, too. Raises ApiError."""
        uid = uid_of(resource)
        sets = [each for each in self._store.of(key, STATEFUL_SET) if owned_by(each, uid) or orphaned(each)]
        plan = group_plan.heal(group_plan.gather(sets, pods), pods, now)
        for group, notes in plan.notes:
            await self.note(group.workload, notes)
        for group in plan.restart:
            await self.note(group.workload, group_plan.counted_restart(group, now))
            message = f"all pods of {name_of(group.workload)} begin anew, since one of them was replaced or restarted"
            await self._recorder.record(resource, "Warning", "GroupRestarted", message)
            grace = None if group.draining else group_plan.BROKEN_GRACE
            await self._delete(key, [pod for pod in group.pods if not pod.terminating], grace)
        await self._delete(key, plan.bury, grace=0)
        return plan

    async def note(self, workload: Object, notes: group_plan.Notes) -> None:
        place = namespace_of(workload), name_of(workload)
        self._store.put(await self._cluster.patch(STATEFUL_SET, *place, {"metadata": {"annotations": notes}}))

    async def _delete(self, key: Key, pods: Sequence[EnginePod], grace: int | None = None) -> None:
        for pod in pods:
            manifest = self._store.get(POD, key.namespace, pod.name)
            if manifest is not None and uid_of(manifest) == pod.uid:
                await self._cluster.delete(manifest, grace=grace)
