"""Why a pod that has a node does not start: only Events say, so they are asked for once it has taken a minute.

To watch all Events of a cluster would cost more than all else. A pod whose image is large takes longer than a minute as
well: then one list in half a minute finds nothing wrong.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import structlog

from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import EVENT, Key, Object
from headwater_operator.diagnose.pods import EnginePod, Problem, parse_time

log = structlog.get_logger(__name__)

HELD_UP: Final[Mapping[str, str]] = {
    "FailedMount": "the Secrets, ConfigMaps and volumes that it mounts must be there, and its node must reach them",
    "FailedAttachVolume": "a volume of one node cannot be on another one at the same time",
    "FailedCreatePodSandBox": "the node cannot make pods, which is for who runs the cluster",
}
"""What becomes the condition, and what helps."""
_FURTHER: Final = frozenset({"Pulling", "Pulled", "Created", "Started"})
"""What comes after all of these: whatever stood in the way before has passed."""
_PATIENCE: Final = 60.0
_AGAIN: Final = 30.0


class Startup:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._answers: dict[Key, tuple[datetime, str, Problem | None]] = {}
        """When Events were read, of which pod, and what they said."""

    async def problem(self, key: Key, pods: Sequence[EnginePod], now: datetime) -> tuple[Problem | None, float | None]:
        """What holds up one of these pods, and in how many seconds to ask again."""
        waiting = {pod.name: pod.waits_since for pod in pods if pod.waits_since is not None and not pod.terminating}
        if not waiting:
            self.forget(key)
            return None, None
        name, since = min(waiting.items(), key=lambda each: (each[1], each[0]))
        left = _PATIENCE - (now - since).total_seconds()
        return (None, left) if left > 0 else (await self._said(key, name, now), _AGAIN)

    def forget(self, key: Key) -> None:
        self._answers.pop(key, None)

    async def _said(self, key: Key, pod: str, now: datetime) -> Problem | None:
        at, whose, answer = self._answers.get(key, (now, "", None))
        if whose == pod and (now - at).total_seconds() < _AGAIN:
            return answer
        try:
            fields = f"involvedObject.kind=Pod,involvedObject.name={pod}"
            events, _ = await self._cluster.list(EVENT, key.namespace, fields=fields)
        except ApiError as error:
            log.warning("events cannot be read", pod=pod, reason=str(error))
            events = []
        found = told(pod, events)
        self._answers[key] = now, pod, found
        return found


def told(pod: str, events: Sequence[Object]) -> Problem | None:
    """By the last one that says how far the pod is."""
    speaking = [each for each in events if each.get("reason") in HELD_UP or each.get("reason") in _FURTHER]
    last = max(speaking, key=_seen, default=None)
    if last is None or last["reason"] not in HELD_UP:
        return None
    reason = str(last["reason"])
    message = " ".join(str(last.get("message") or "no reason given").split())
    return Problem(reason, f"pod {pod} does not start: {message}; {HELD_UP[reason]}")


def _seen(event: Object) -> datetime:
    series = (event.get("series") or {}).get("lastObservedTime")
    return parse_time(
        series or event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    )
