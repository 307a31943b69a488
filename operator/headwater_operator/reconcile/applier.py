"""Brings objects to the state in which they were rendered, and leaves alone what is not ours.

An object is ours if its owner is the ModelDeployment at hand, or, for what several share, if it carries our label.
"""

import hashlib
import json
from typing import Final

import structlog

from headwater.kubernetes import FIELD_MANAGER, LABEL_MANAGED_BY, MANAGED_BY
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.kinds import (
    Object,
    kind_of,
    labels_of,
    name_of,
    namespace_of,
    orphaned,
    owned_by,
    uid_of,
    without_absent,
)
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile.contests import Contests, Place
from headwater_operator.reconcile.drift import differences
from headwater_operator.watch.store import Store

log = structlog.get_logger(__name__)

AUTOSCALER: Final = f"{FIELD_MANAGER}-autoscaler"
"""Field manager of `spec.replicas` where autoscaling is on, so that what else we apply need not name it."""


_GONE: Final = "gone"


class NotOursError(Exception):
    """An object of this name is there, and was made by somebody else. Touching it might destroy what they need."""


class StillGoingError(Exception):
    """An object of this name belonged to an earlier ModelDeployment, and is about to go."""


class Applier:
    """Remembers what it has applied, so that an object at rest costs no call."""

    def __init__(self, cluster: Cluster, store: Store, metrics: OperatorMetrics) -> None:
        self.contests = Contests()
        self._cluster = cluster
        self._store = store
        self._metrics = metrics
        self._applied: dict[str, tuple[str, str]] = {}
        """UID to what was applied and which version it led to."""

    async def apply(self, manifest: Object, owner: str | None) -> Object:
        """Returns the object as it is then. `owner`: the UID that it must have, None for what is shared.

        Raises NotOursError, StillGoingError, ApiError.
        """
        kind, place = kind_of(manifest), (namespace_of(manifest), name_of(manifest))
        live = self._store.get(kind, *place) or await self._cluster.get(kind, *place)
        if live is not None:
            _check_ours(live, owner)
            if not self._differs(manifest, live):
                return live
        if self.contests.wait(_place(manifest), _fingerprint(manifest), owner or ""):
            return live or manifest
        return await self._write(manifest, live)

    async def scale(self, workload: Object, replicas: int) -> Object:
        """Set `spec.replicas` as the autoscaler does: what else is applied may leave it out from then on."""
        manifest = {
            "apiVersion": workload["apiVersion"],
            "kind": workload["kind"],
            # Its UID, so that one that has just gone is not made anew out of this.
            "metadata": {"namespace": namespace_of(workload), "name": name_of(workload), "uid": uid_of(workload)},
            "spec": {"replicas": replicas},
        }
        applied = await self._cluster.apply(manifest, manager=AUTOSCALER)
        self._store.put(applied)
        return applied

    async def delete(self, manifest: Object) -> None:
        await self._cluster.delete(manifest)
        self._applied.pop(uid_of(manifest), None)

    async def prune(self, manifest: Object, owner: str) -> None:
        """Delete what the spec no longer asks for, unless somebody makes it again and again."""
        if not self.contests.wait(_place(manifest), _GONE, owner):
            log.info("deleting", object=f"{manifest['kind']} {name_of(manifest)}", reason="no longer asked for")
            await self.delete(manifest)
            self.contests.wrote(_place(manifest), _GONE)

    def _differs(self, manifest: Object, live: Object) -> bool:
        # What the API server writes otherwise than we do looks like drift for ever: a version that our own write led
        # to is as good as equal.
        version = live["metadata"]["resourceVersion"]
        if self._applied.get(uid_of(live)) == (_fingerprint(manifest), version):
            return False
        found = differences(manifest, live)
        if found:
            log.info("applying", object=f"{manifest['kind']} {name_of(manifest)}", differing=found[:8])
        return bool(found)

    async def _write(self, manifest: Object, live: Object | None) -> Object:
        applied = await self._cluster.apply(manifest | {"metadata": without_absent(manifest["metadata"])})
        if live is None or applied["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
            self._metrics.applied.labels(manifest["kind"]).inc()
            self.contests.wrote(_place(manifest), _fingerprint(manifest))
        self._applied[uid_of(applied)] = (_fingerprint(manifest), applied["metadata"]["resourceVersion"])
        self._store.put(applied)
        return applied


def _place(manifest: Object) -> Place:
    return kind_of(manifest).name, namespace_of(manifest), name_of(manifest)


def _check_ours(live: Object, owner: str | None) -> None:
    what = f"{live['kind']} {name_of(live)}"
    if owner is not None and owned_by(live, owner):
        return
    if labels_of(live).get(LABEL_MANAGED_BY) != MANAGED_BY:
        raise NotOursError(f"there is a {what} already that Headwater did not make; rename it, or this resource")
    if owner is not None and not orphaned(live):
        raise StillGoingError(f"{what} of an earlier resource is still there")


def _fingerprint(manifest: Object) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
