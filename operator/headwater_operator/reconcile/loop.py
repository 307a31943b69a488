"""Keys in, ModelDeployments reconciled: who waits for it, and the workers that do it."""

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Final

import structlog

from headwater.kubernetes import LABEL_DEPLOYMENT, LABEL_MANAGED_BY, MANAGED_BY
from headwater.resource import KIND
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import (
    CHILDREN,
    JOB,
    MODEL_DEPLOYMENT,
    Key,
    Object,
    kind_of,
    labels_of,
    name_of,
    namespace_of,
)
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile.errands import Errands
from headwater_operator.reconcile.queue import WorkQueue
from headwater_operator.reconcile.reconciler import Reconciler
from headwater_operator.render.weights_cache import CLAIM as CACHE
from headwater_operator.watch.store import Store

log = structlog.get_logger(__name__)

_STUCK_AFTER: Final = 600.0
"""Seconds that no reconciliation takes unless something hangs."""


class ReconcileLoop:
    """Level-triggered: an event says only that it is time to reconcile."""

    def __init__(
        self,
        settings: OperatorSettings,
        cluster: Cluster,
        store: Store,
        reconciler: Reconciler,
        scaling: Scaling,
        metrics: OperatorMetrics,
        queue: WorkQueue,
        errands: Errands,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._store = store
        self._reconciler = reconciler
        self._scaling = scaling
        self._metrics = metrics
        self._queue = queue
        self._errands = errands
        self._turn = asyncio.Lock()
        self._since: dict[Key, float] = {}

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def oldest(self) -> float:
        """Seconds that a key has waited at most."""
        return self._queue.oldest

    def stuck(self) -> str | None:
        """A key that a worker does not get done with."""
        now = time.monotonic()
        return next((str(key) for key, since in self._since.items() if now - since > _STUCK_AFTER), None)

    def observed(self, manifest: Object, deleted: bool) -> None:
        """A watch told the state of an object."""
        names, own = self._store.names, Key(namespace_of(manifest), name_of(manifest))
        asked = names.claimant(own)
        news = self._store.remove(manifest) if deleted else self._store.put(manifest)
        if not news:
            return
        concerned = set(self._concerned(manifest))
        if (asks := names.claimant(own)) != asked:
            # Others may get a name by it, or lose one.
            concerned |= names.rivals(asked) | names.rivals(asks)
        for key in concerned:
            self._queue.add(key)

    def _concerned(self, manifest: Object) -> list[Key]:
        if kind_of(manifest) is MODEL_DEPLOYMENT:
            return [Key(namespace_of(manifest), name_of(manifest))]
        if (name := labels_of(manifest).get(LABEL_DEPLOYMENT)) is not None:
            return [Key(namespace_of(manifest), name)]
        # A volume of weights, its Job and the pods of that belong to no one alone. They are called alike.
        owners = manifest["metadata"].get("ownerReferences") or []
        if name_of(manifest) == CACHE:
            return [Key(namespace_of(manifest), owner["name"]) for owner in owners if owner["kind"] == KIND]
        volume = next((owner["name"] for owner in owners if owner["kind"] == JOB.name), name_of(manifest))
        if namespace_of(manifest) == self._settings.weights_cache.get("namespace"):
            return sorted(self._store.specs.users_everywhere(volume))
        return sorted(self._store.specs.users(namespace_of(manifest), volume))

    def _keys(self) -> list[Key]:
        return [Key(namespace_of(each), name_of(each)) for each in self._store.all(MODEL_DEPLOYMENT)]

    async def load(self) -> None:
        """Read everything that there is, and have every ModelDeployment reconciled. Raises ApiError."""
        namespaces: Sequence[str | None] = self._settings.namespaces or [None]
        for namespace in namespaces:
            for kind in (MODEL_DEPLOYMENT, *CHILDREN):
                selector = "" if kind is MODEL_DEPLOYMENT else f"{LABEL_MANAGED_BY}={MANAGED_BY}"
                listed, version = await self._cluster.list(kind, namespace, selector)
                await asyncio.sleep(0)  # to read a page and to take in a thousand objects are two turns
                for manifest in self._store.replace(kind, namespace, listed, version):
                    for key in self._concerned(manifest):
                        self._queue.add(key)
        for key in self._keys():
            self._queue.add(key)
        # A million of objects that are no garbage: the collector would need a tenth of a second for them each time.
        gc.freeze()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.workers):
                    group.create_task(self._work())
                group.create_task(self._resync())
                group.create_task(self._scaling.run(self._queue.add))
        finally:
            await self._errands.end()

    async def _resync(self) -> None:
        """Heal what a watch may have missed."""
        while True:
            await asyncio.sleep(self._settings.resync_interval)
            try:
                await self.load()
                await self._reconciler.sweep()
            except ApiError as error:
                log.warning("resync failed; the next one will do", reason=str(error))

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            # A reconciliation that makes no call lets nobody else have a turn: so one begins in each turn of the loop.
            async with self._turn:
                await asyncio.sleep(0)
            self._since[key] = time.monotonic()
            try:
                await self._reconcile(key)
            finally:
                del self._since[key]

    async def _reconcile(self, key: Key) -> None:
        outcome = "done"
        try:
            with self._metrics.reconcile_seconds.time():
                again = await self._reconciler.reconcile(key, self._queue.failures(key))
        except Exception as error:
            # One resource that cannot be reconciled must not end the work on all others.
            outcome, delay = "retry", self._queue.failed(key)
            if isinstance(error, ApiError):
                log.warning("reconciling failed", key=str(key), reason=str(error), again_in=round(delay, 1))
            else:
                log.exception("reconciling failed", key=str(key), again_in=round(delay, 1))
        else:
            self._queue.done(key)
            if again is not None:
                self._queue.add_after(key, again)
        self._metrics.reconciles.labels(outcome).inc()
