"""Kubernetes Events: what `kubectl describe md` shows at its end."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import EVENT, Object, name_of, namespace_of

log = structlog.get_logger(__name__)

_LONGEST: Final = 1024
"""Bytes of a message that the API server takes."""
_LIFETIME: Final = timedelta(minutes=50)
"""The API server forgets an Event after an hour without a word."""
_REMEMBERED: Final = 10_000


@dataclass(slots=True)
class _Series:
    """One Event that stands for all that were alike."""

    name: str
    count: int
    last: datetime


class EventRecorder:
    """Writes them, and takes a refusal lightly: an Event is a courtesy.

    What comes again is counted on the Event that is there: a warning by its reason, with the words that are true now,
    so that a crash loop is one line and not a page; anything else by its words, too, since it is a history.
    """

    def __init__(self, cluster: Cluster, identity: str) -> None:
        self._cluster = cluster
        self._identity = identity
        self._series: OrderedDict[tuple[str, str, str], _Series] = OrderedDict()
        """By the resource's UID, reason, and the message where it counts."""

    async def record(self, resource: Object, kind: str, reason: str, message: str) -> None:
        """`kind`: Normal or Warning. `reason`: CamelCase. Call it once for each change, not for each reconciliation."""
        now = datetime.now(UTC)
        message = message.encode(errors="replace")[:_LONGEST].decode(errors="ignore")
        place = str(resource["metadata"]["uid"]), reason, "" if kind == "Warning" else message
        try:
            if not await self._count(place, namespace_of(resource), message, now):
                made = await self._cluster.create(self._event(resource, kind, reason, message, now))
                self._series[place] = _Series(name_of(made), 1, now)
                if len(self._series) > _REMEMBERED:
                    self._series.popitem(last=False)
        except ApiError as error:
            log.warning("event not written", reason=reason, error=str(error))

    async def _count(self, place: tuple[str, str, str], namespace: str, message: str, now: datetime) -> bool:
        """Says whether there is one to count it on."""
        series = self._series.pop(place, None)
        if series is None or now - series.last > _LIFETIME:
            return False
        count = series.count + 1
        # Both ways in which an Event says that it stands for several: kubectl reads the one or the other.
        told = {"count": count, "lastObservedTime": _to_the_microsecond(now)}
        patch = {"count": count, "series": told, "lastTimestamp": _written(now), "message": message}
        try:
            await self._cluster.patch(EVENT, namespace, series.name, patch)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        self._series[place] = _Series(series.name, count, now)
        return True

    def _event(self, resource: Object, kind: str, reason: str, message: str, now: datetime) -> Object:
        metadata = resource["metadata"]
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {"generateName": f"{name_of(resource)}.", "namespace": namespace_of(resource)},
            "involvedObject": {
                "apiVersion": resource["apiVersion"],
                "kind": resource["kind"],
                "name": name_of(resource),
                "namespace": namespace_of(resource),
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "firstTimestamp": _written(now),
            "lastTimestamp": _written(now),
            "count": 1,
            "source": {"component": "headwater-operator"},
            "reportingComponent": "headwater-operator",
            "reportingInstance": self._identity,
        }


def _to_the_microsecond(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _written(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
