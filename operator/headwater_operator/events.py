"""Kubernetes Events: what `kubectl describe md` shows at its end."""

from datetime import UTC, datetime

import structlog

from headwater_operator.api import ApiError, Cluster
from headwater_operator.kinds import EVENT, Object, name_of, namespace_of

log = structlog.get_logger(__name__)

_LONGEST = 1024
"""Characters of a message that the API server takes."""


class EventRecorder:
    """Writes them, and takes a refusal lightly: an Event is a courtesy."""

    def __init__(self, cluster: Cluster, identity: str) -> None:
        self._cluster = cluster
        self._identity = identity

    async def record(self, resource: Object, kind: str, reason: str, message: str) -> None:
        """`kind`: Normal or Warning. `reason`: CamelCase. Call it once for each change, not for each look."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = resource["metadata"]
        event = {
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
            "message": message[:_LONGEST],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": "headwater-operator"},
            "reportingComponent": "headwater-operator",
            "reportingInstance": self._identity,
        }
        try:
            await self._cluster.create(event)
        except ApiError as error:
            log.warning("event not written", reason=reason, error=str(error))
