"""One ModelDeployment is reconciled: observe, heal, render, apply, status.

It begins with nothing but what the store holds and ends with the world one step closer to the spec. It never waits:
what takes time shows up as an event later, and what only time can change is reconciled again after a while.
"""

import json
from datetime import UTC, datetime
from typing import Final

import structlog
from pydantic import ValidationError

from headwater.kubernetes import LABEL_COMPONENT
from headwater.resource import ResourceError, problems
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.events import EventRecorder
from headwater_operator.cluster.kinds import (
    MODEL_DEPLOYMENT,
    POD,
    Key,
    Object,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose.plain_tokens import plain_tokens
from headwater_operator.diagnose.pods import EnginePod, Problem, finished
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile.applier import NotOursError, StillGoingError
from headwater_operator.reconcile.children import Children
from headwater_operator.reconcile.contests import Contests
from headwater_operator.reconcile.group_plan import GroupPlan
from headwater_operator.reconcile.healing import Healing
from headwater_operator.reconcile.prerequisites import PrerequisiteMissingError
from headwater_operator.reconcile.reconciliation import Reconciliation
from headwater_operator.reconcile.status import Situation, news, status_of
from headwater_operator.reconcile.sweep import Sweep
from headwater_operator.reconcile.weights_cache import WeightsCache
from headwater_operator.watch.store import Store

log = structlog.get_logger(__name__)

_REFUSED_AGAIN: Final = 60.0
"""Seconds after which what was refused is tried again: what stood in the way may be gone."""
_GOING_AGAIN: Final = 1.0
_TOLD_AFTER: Final = 3
"""Failures in a row before the status says so: what passes in a second or two need alarm nobody."""


class Reconciler:
    def __init__(
        self,
        settings: OperatorSettings,
        cluster: Cluster,
        store: Store,
        healing: Healing,
        children: Children,
        sweep: Sweep,
        cache: WeightsCache,
        recorder: EventRecorder,
        scaling: Scaling,
        metrics: OperatorMetrics,
        contests: Contests,
    ) -> None:
        self._contests = contests
        self._settings = settings
        self._cluster = cluster
        self._store = store
        self._healing = healing
        self._children = children
        self._sweep = sweep
        self._cache = cache
        self._recorder = recorder
        self._scaling = scaling
        self._metrics = metrics
        self._announced: dict[Key, list[tuple[str, str, str]]] = {}
        """What was told of a status that is not written yet."""

    async def reconcile(self, key: Key, failures: int = 0) -> float | None:
        """Returns in how many seconds time alone may have changed something.

        `failures`: times in a row that it failed before. Raises what may pass, from the third time on after the
        status has said so.
        """
        resource = self._store.get(MODEL_DEPLOYMENT, key.namespace, key.name)
        if resource is None or "deletionTimestamp" in resource["metadata"]:
            # Its children go with it: they say who owns them, and the garbage collector needs no operator.
            self._children.forget(key)
            self._metrics.forget(key.namespace, key.name)
            self._announced.pop(key, None)
            await self._sweep.after(key)
            return None
        now = datetime.now(UTC)
        generation, url = resource["metadata"]["generation"], self._settings.gateway_url
        situation, health = Situation(generation=generation, name=key.name, url=url), GroupPlan()
        try:
            self._observe(key, resource, situation, now)
            health = await self._healing.heal(key, resource, situation.pods, now)
            again = await self._apply(key, resource, situation, health, now)
            await self._report(resource, situation, now)
        except Exception as error:
            refused = _refusal(error)
            if refused is None and failures + 1 < _TOLD_AFTER:
                raise
            situation.problem = refused or _failing(error)
            if isinstance(error, ValidationError) and (known := (resource.get("status") or {}).get("autoscaling")):
                situation.extra["autoscaling"] = known
            await self._report(resource, situation, now)
            if refused is None:
                raise
            again = _REFUSED_AGAIN
        return min((each for each in (again, health.requeue_after) if each is not None), default=None)

    def _observe(self, key: Key, resource: Object, situation: Situation, now: datetime) -> None:
        """What can be said whatever the spec is: what runs goes on, also where that cannot be read."""
        pods = [EnginePod.of(pod) for pod in self._store.of(key, POD) if _of_engine(pod) and not finished(pod)]
        situation.pods = pods
        situation.routable = self._scaling.routable(key, _routable_before(resource))
        serving = [pod for pod in pods if pod.index == 0 and not pod.terminating]
        situation.total, situation.ready = len(serving), sum(pod.ready for pod in serving)
        claimed, situation.flaw = self._store.names.standing(key, now)
        situation.extra["claimedNames"] = claimed or None
        situation.extra["shares"] = self._scaling.shares(key, (resource.get("status") or {}).get("shares"))

    async def _apply(
        self, key: Key, resource: Object, situation: Situation, health: GroupPlan, now: datetime
    ) -> float | None:
        """Raises whatever keeps it from that."""
        spec = self._store.specs.read(key)
        work = Reconciliation(key, resource, spec, now, situation, situation.pods, health.exhausted)
        try:
            await self._children.apply(work)
        except PrerequisiteMissingError:
            pass  # the situation says what is missing
        except StillGoingError as error:
            situation.preparing = ("WaitingForDeletion", str(error))
            work.requeue_after(_GOING_AGAIN)
        return work.again

    async def sweep(self) -> None:
        """What belongs to no ModelDeployment alone, now and then. Raises ApiError."""
        await self._sweep.run()
        await self._cache.sweep()

    async def _report(self, resource: Object, situation: Situation, now: datetime) -> None:
        labels = resource["metadata"]["namespace"], situation.name
        self._metrics.desired_replicas.labels(*labels).set(situation.wanted)
        self._metrics.ready_replicas.labels(*labels).set(situation.ready)
        old = resource.get("status") or {}
        status = status_of(situation, old, now)
        self._metrics.tell(*labels, status["conditions"])
        place, what = ("Status", labels[0], labels[1]), json.dumps(status, sort_keys=True)
        if status == old or self._contests.wait(place, what, uid_of(resource)):
            return
        self._contests.wrote(place, what)
        await self._announce(resource, status, old)
        written = await self._cluster.apply(
            {
                "apiVersion": resource["apiVersion"],
                "kind": resource["kind"],
                "metadata": {"namespace": resource["metadata"]["namespace"], "name": situation.name},
                "status": status,
            },
            subresource="status",
        )
        self._store.put(written)
        self._announced.pop(Key(*labels), None)

    async def _announce(self, resource: Object, status: Object, old: Object) -> None:
        """The Events of a status, before that is written: whoever comes after an operator that ended in between tells
        them once more. Behind it they would be lost, as only a change is told."""
        key, events = Key(namespace_of(resource), name_of(resource)), news(status, old)
        if old.get("observedGeneration") != status["observedGeneration"] and (found := plain_tokens(resource)):
            message = f"{', '.join(found)}: all who may view this resource can read it; put it into a Secret"
            events.append(("Warning", "PlainTextToken", message))
        if self._announced.get(key) == events:
            return  # the status could not be written then
        self._announced[key] = events
        for kind, reason, message in events:
            await self._recorder.record(resource, kind, reason, message)
            if reason == "NameTaken":
                await self._tell_owners(resource)

    async def _tell_owners(self, resource: Object) -> None:
        """Of a name that somebody elsewhere asks for: it may be meant to be shared."""
        asking = f"{resource['metadata']['namespace']}/{name_of(resource)}"
        for key, name in self._store.names.owners(Key(namespace_of(resource), name_of(resource))):
            owner = self._store.get(MODEL_DEPLOYMENT, key.namespace, key.name)
            if owner is not None:
                message = f"{asking} asks for {name}, which stays this one's; spec.routing.sharedWith would share it"
                await self._recorder.record(owner, "Normal", "NameWanted", message)


def _routable_before(resource: Object) -> bool | None:
    conditions = (resource.get("status") or {}).get("conditions") or []
    said = next((each["status"] for each in conditions if each["type"] == "Routable"), "Unknown")
    return {"True": True, "False": False}.get(said)


def _refusal(error: Exception) -> Problem | None:
    """None: trying again may help."""
    match error:
        case ValidationError():
            return Problem("InvalidSpec", "; ".join(problems(error)[:3]))
        case ResourceError():
            return Problem("Unsupported", str(error))
        case NotOursError():
            return Problem("NameTaken", str(error))
        case ApiError() if error.permanent:
            return Problem("Refused", f"the API server refuses what this needs: {error}")
    return None


def _failing(error: Exception) -> Problem:
    """For a fault of our own the kind of the exception is all the help that there is."""
    said = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
    return Problem("ReconcileFailed", f"it is tried again and again, and ends with: {said}; what runs goes on")


def _of_engine(pod: Object) -> bool:
    return labels_of(pod).get(LABEL_COMPONENT) == "engine"
