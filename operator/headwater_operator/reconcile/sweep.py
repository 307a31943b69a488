"""Volumes with weights that no ModelDeployment asks for: one that was never filled goes, any other is marked.

A volume is shared and outlives its users, so none of them can say when it has lost the last. Marked ones are for
people to judge: `kubectl get pvc -A -l headwater.dev/unused`.
"""

import structlog

from headwater.kubernetes import LABEL_COMPONENT, LABEL_UNUSED
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.kinds import (
    CLAIM,
    JOB,
    MODEL_DEPLOYMENT,
    Key,
    Object,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
)
from headwater_operator.reconcile.applier import Applier
from headwater_operator.reconcile.weights import going, is_filled
from headwater_operator.render.weights import COMPONENT, FILLED
from headwater_operator.watch.store import Store

log = structlog.get_logger(__name__)


class Sweep:
    def __init__(self, cluster: Cluster, store: Store, applier: Applier) -> None:
        self._cluster = cluster
        self._store = store
        self._applier = applier

    async def run(self) -> None:
        """Look at all volumes. Raises ApiError."""
        for claim in self._store.all(CLAIM):
            await self._look_at(claim)

    async def after(self, key: Key) -> None:
        """Look at those that this one used, which is gone or about to go: not at those of its neighbours, of whom there
        may be a thousand that go as well. Raises ApiError."""
        for volume in self._store.specs.volumes(key):
            await self.look_at(key.namespace, volume)
        self._store.specs.forget(key)

    async def look_at(self, namespace: str, volume: str) -> None:
        """Raises ApiError."""
        if (claim := self._store.get(CLAIM, namespace, volume)) is not None:
            await self._look_at(claim)

    async def _look_at(self, claim: Object) -> None:
        if labels_of(claim).get(LABEL_COMPONENT) == COMPONENT:
            await self._judge(claim, used=self._is_used(claim))

    def _is_used(self, claim: Object) -> bool:
        """Whether a resource asks for it, be it right or wrong in other fields, that is not about to go."""
        users = self._store.specs.users(namespace_of(claim), name_of(claim))
        asking = (self._store.get(MODEL_DEPLOYMENT, key.namespace, key.name) for key in users)
        return any(each is not None and "deletionTimestamp" not in each["metadata"] for each in asking)

    async def _judge(self, claim: Object, *, used: bool) -> None:
        job = self._store.get(JOB, namespace_of(claim), name_of(claim))
        if not used and not is_filled(claim, job):
            log.info("deleting", object=f"{CLAIM.name} {name_of(claim)}", reason="half filled, and nobody asks for it")
            # The Job first: its pod would hold the volume back until all is fetched.
            for each in (job, claim):
                if each is not None and "deletionTimestamp" not in each["metadata"]:
                    await self._applier.delete(each)
            return
        if not used and annotations_of(claim).get(FILLED) == "true":
            # Its pod, also one that has ended, would hold back a volume that goes with its last user.
            for each in going(job):
                await self._applier.delete(each)
        if used == (LABEL_UNUSED in labels_of(claim)):
            mark = None if used else "true"
            patch = {"metadata": {"labels": {LABEL_UNUSED: mark}}}
            self._store.put(await self._cluster.patch(CLAIM, namespace_of(claim), name_of(claim), patch))
