"""One look at one ModelDeployment: observe, render, apply, status.

A look begins with nothing but what the store holds and ends with the world one step closer to the spec. It never waits:
what takes time shows up as an event later, and what only time can change is looked at again after a while.
"""

import contextlib
from datetime import UTC, datetime
from typing import Final

import structlog
from pydantic import ValidationError

from headwater.kubernetes import LABEL_COMPONENT
from headwater.resource import ResourceError, problems
from headwater_operator.api import ApiError, Cluster
from headwater_operator.applier import NotOursError, StillGoingError
from headwater_operator.config import OperatorSettings
from headwater_operator.events import EventRecorder
from headwater_operator.kinds import MODEL_DEPLOYMENT, POD, Object, labels_of
from headwater_operator.look import Look, read
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.pods import EnginePod, Problem, finished
from headwater_operator.preparing import NotPreparedError
from headwater_operator.queue import Key
from headwater_operator.realize import Realizer
from headwater_operator.scaling import Scaling
from headwater_operator.status import Situation, news, status_of
from headwater_operator.store import Store

log = structlog.get_logger(__name__)

_REFUSED_AGAIN: Final = 60.0
"""Seconds after which what was refused is tried again: what stood in the way may be gone."""
_GOING_AGAIN: Final = 1.0


class Reconciler:
    def __init__(
        self,
        settings: OperatorSettings,
        cluster: Cluster,
        store: Store,
        realizer: Realizer,
        recorder: EventRecorder,
        scaling: Scaling,
        metrics: OperatorMetrics,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._store = store
        self._realizer = realizer
        self._recorder = recorder
        self._scaling = scaling
        self._metrics = metrics

    async def look(self, key: Key) -> float | None:
        """Returns in how many seconds time alone may have changed something. Raises ApiError for what may pass."""
        resource = self._store.get(MODEL_DEPLOYMENT, key.namespace, key.name)
        if resource is None or "deletionTimestamp" in resource["metadata"]:
            # Its children go with it: they say who owns them, and the garbage collector needs no operator.
            self._realizer.forget(key)
            self._metrics.forget(key.namespace, key.name)
            return None
        now = datetime.now(UTC)
        pods = [EnginePod.of(pod) for pod in self._store.of(key, POD) if _of_engine(pod) and not finished(pod)]
        situation = Situation(
            generation=resource["metadata"]["generation"], name=key.name, url=self._settings.gateway_url, pods=pods
        )
        situation.routable = self._scaling.routable(key, _routable_before(resource))
        # For a spec that cannot be read: what runs goes on all the same.
        serving = [pod for pod in pods if pod.index == 0 and not pod.terminating]
        situation.total, situation.ready = len(serving), sum(pod.ready for pod in serving)
        claimed, situation.flaw = self._store.names.standing(key, now)
        situation.extra["claimedNames"] = claimed or None
        again: float | None = None
        try:
            look = Look(key, resource, read(resource), now, situation, pods)
            with contextlib.suppress(NotPreparedError):
                await self._realizer.realize(look)
            again = look.again
        except StillGoingError as error:
            situation.preparing = ("WaitingForDeletion", str(error))
            again = _GOING_AGAIN
        except (ValidationError, ResourceError, NotOursError, ApiError) as error:
            if isinstance(error, ApiError) and not error.permanent:
                raise
            situation.problem = _refusal(error)
            if isinstance(error, ValidationError) and (known := (resource.get("status") or {}).get("autoscaling")):
                situation.extra["autoscaling"] = known
            again = _REFUSED_AGAIN
        await self._report(resource, situation, now)
        return again

    async def _report(self, resource: Object, situation: Situation, now: datetime) -> None:
        labels = resource["metadata"]["namespace"], situation.name
        self._metrics.desired_replicas.labels(*labels).set(situation.wanted)
        self._metrics.ready_replicas.labels(*labels).set(situation.ready)
        old = resource.get("status") or {}
        status = status_of(situation, old, now)
        if status == old:
            return
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
        for kind, reason, message in news(status, old):
            await self._recorder.record(resource, kind, reason, message)


def _routable_before(resource: Object) -> bool | None:
    conditions = (resource.get("status") or {}).get("conditions") or []
    said = next((each["status"] for each in conditions if each["type"] == "Routable"), "Unknown")
    return {"True": True, "False": False}.get(said)


def _refusal(error: Exception) -> Problem:
    match error:
        case ValidationError():
            return Problem("InvalidSpec", "; ".join(problems(error)[:3]))
        case ResourceError():
            return Problem("Unsupported", str(error))
        case NotOursError():
            return Problem("NameTaken", str(error))
        case _:
            return Problem("Refused", f"the API server refuses what this needs: {error}")


def _of_engine(pod: Object) -> bool:
    return labels_of(pod).get(LABEL_COMPONENT) == "engine"
