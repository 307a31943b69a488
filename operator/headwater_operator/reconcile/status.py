"""The status of a ModelDeployment: what a person, `kubectl wait` and an autoscaler read of it.

Everything is derived anew from what was observed; of the old status only the times of the conditions are kept. Ready
speaks of the current revision alone: while an old one still serves, it is ModelLoaded and Routable that say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from headwater.kubernetes import LABEL_COMPONENT, LABEL_DEPLOYMENT
from headwater_operator.diagnose.pods import EnginePod, Problem


class Phase(StrEnum):
    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    READY = "Ready"
    SCALED_TO_ZERO = "ScaledToZero"
    FAILED = "Failed"


@dataclass(slots=True)
class Situation:
    """What there is to say about one ModelDeployment. Counts are replicas, which may be groups of pods."""

    generation: int
    name: str
    wanted: int = 0
    autoscaled: bool = False
    revision: str = ""
    backend: str | None = None
    render_version: int | None = None
    url: str | None = None
    total: int = 0
    updated: int = 0
    """Of the current revision."""
    ready: int = 0
    """That take requests, of any revision."""
    ready_updated: int = 0
    pods: Sequence[EnginePod] = ()
    problem: Problem | None = None
    """What will not pass by itself; the first and worst."""
    flaw: Problem | None = None
    """The same, where it keeps no replica from serving: it makes the resource Degraded, and nothing else."""
    preparing: tuple[str, str] | None = None
    """Reason and message of what has to be done before pods can start: weights, an engine build."""
    paused: bool = False
    rollout: tuple[str, str] | None = None
    """Reason and message of the way that a rollout takes."""
    routable: bool | None = None
    """Whether all gateways have endpoints of it; None: not known."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further parts of the status, from those who know: autoscaling, adapters, weights."""


def status_of(situation: Situation, old: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The whole status. `old`: the one before."""
    ready = _ready(situation)
    conditions = [
        ready,
        _progressing(situation),
        _degraded(situation),
        _loaded(situation),
        _routable(situation),
    ]
    before = {each["type"]: each for each in old.get("conditions") or []}
    status = {
        "observedGeneration": situation.generation,
        "phase": _phase(situation, ready["status"] == "True"),
        "message": ready["message"],
        "replicas": situation.total,
        "readyReplicas": situation.ready,
        "updatedReplicas": situation.updated,
        "selector": f"{LABEL_DEPLOYMENT}={situation.name},{LABEL_COMPONENT}=engine",
        "url": situation.url,
        "backend": situation.backend,
        "renderVersion": situation.render_version,
        "conditions": [_dated(each, before.get(each["type"]), situation.generation, now) for each in conditions],
    }
    return {name: value for name, value in (status | situation.extra).items() if value is not None}


def news(status: Mapping[str, Any], old: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What is worth an Event: type, reason and message."""
    before = {each["type"]: each for each in old.get("conditions") or []}
    events = []
    for condition in status["conditions"]:
        was = before.get(condition["type"], {})
        changed = (was.get("status"), was.get("reason")) != (condition["status"], condition["reason"])
        positive = condition["status"] == "True"
        match condition["type"]:
            case "Degraded" if positive and changed:
                events.append(("Warning", condition["reason"], condition["message"]))
            case "Ready" if positive and changed:
                events.append(("Normal", condition["reason"], condition["message"]))
            case "Progressing" if positive and changed:
                events.append(("Normal", condition["reason"], condition["message"]))
    return events


def _phase(it: Situation, ready: bool) -> Phase:
    if it.problem and not it.ready:
        return Phase.FAILED
    if it.preparing and not it.ready:
        return Phase.DOWNLOADING if it.preparing[0] == "Downloading" else Phase.PENDING
    if it.wanted == 0 and it.total == 0:
        return Phase.SCALED_TO_ZERO
    if ready:
        return Phase.READY
    if it.ready or any(pod.running and pod.revision == it.revision for pod in it.pods):
        return Phase.LOADING
    return Phase.PENDING


def _ready(it: Situation) -> dict[str, str]:
    count = f"{it.ready_updated} of {it.wanted} replicas of the current revision are ready"
    short = it.ready_updated < it.wanted
    if it.problem and it.wanted == 0:
        return _condition("Ready", False, it.problem.reason, it.problem.message)
    if it.problem and short:
        return _condition("Ready", False, it.problem.reason, f"{count}: {it.problem.message}")
    if it.preparing:
        return _condition("Ready", False, *it.preparing)
    if it.wanted == 0 and it.autoscaled:
        message = "no replica runs while nobody asks; the gateway holds the request that wakes it"
        return _condition("Ready", True, "ScaledToZero", message)
    if it.wanted == 0:
        return _condition("Ready", False, "NoReplicas", "spec.replicas is 0")
    if not short:
        return _condition("Ready", True, "ReplicasReady", count)
    if it.paused and it.total > it.updated:
        return _condition("Ready", False, "Paused", f"{count}: spec.rollout.paused is true")
    if unplaced := next((pod.unschedulable for pod in it.pods if pod.unschedulable and not pod.terminating), None):
        return _condition("Ready", False, "Unschedulable", f"{count}: {unplaced}")
    return _condition("Ready", False, "Loading", count)


def _progressing(it: Situation) -> dict[str, str]:
    short = it.ready_updated < it.wanted
    if it.paused:
        return _condition("Progressing", False, "Paused", "spec.rollout.paused is true: what runs goes on as it is")
    if it.problem and (short or it.wanted == 0):
        return _condition("Progressing", False, "Stopped", "held up by what Degraded says")
    if it.preparing:
        return _condition("Progressing", True, *it.preparing)
    if it.total > it.updated and it.wanted:
        reason, message = it.rollout or ("RollingOut", "replicas of the current revision take the place of old ones")
        return _condition("Progressing", True, reason, message)
    if short:
        return _condition("Progressing", True, "Loading", "replicas are starting and loading the model")
    if it.total > it.wanted:
        return _condition("Progressing", True, "ScalingDown", "replicas are finishing their answers before they go")
    return _condition("Progressing", False, "Settled", "everything is as it should be")


def _degraded(it: Situation) -> dict[str, str]:
    if told := it.problem or it.flaw:
        return _condition("Degraded", True, told.reason, told.message)
    return _condition("Degraded", False, "AsExpected", "nothing needs attention")


def _loaded(it: Situation) -> dict[str, str]:
    if it.ready:
        return _condition("ModelLoaded", True, "Loaded", f"{it.ready} replicas hold the model in memory")
    return _condition("ModelLoaded", False, "NotLoaded", "no replica holds the model in memory")


def _routable(it: Situation) -> dict[str, str]:
    match it.routable:
        case True:
            return _condition("Routable", True, "Routed", "every gateway sends requests to it")
        case False:
            return _condition("Routable", False, "NoEndpoint", "a gateway has no endpoint of it that takes requests")
        case None:
            return _condition("Routable", None, "NoReport", "no gateway has said whether it sends requests to it")


def _condition(kind: str, value: bool | None, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": "Unknown" if value is None else str(value), "reason": reason, "message": message}


def _dated(condition: dict[str, str], old: Mapping[str, Any] | None, generation: int, now: datetime) -> dict[str, Any]:
    same = old is not None and old.get("status") == condition["status"]
    since = old["lastTransitionTime"] if same and old is not None else now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return condition | {"observedGeneration": generation, "lastTransitionTime": since}
