"""The Lease that makes sure that only one operator acts.

Whoever finds it free, or not renewed for as long as it says, writes itself in; the API server lets only one of two
writers win. The holder renews it, and gives up well before anyone else may take it: a call that hangs counts as failed.
"""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Final

import structlog

from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import LEASE, Object

log = structlog.get_logger(__name__)

_RENEWALS: Final = 6
"""A lease is renewed so often while it lasts."""


class LeaseLostError(Exception):
    """Somebody else may act now: end at once."""


class LeaseHolder:
    """One candidate."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str, seconds: float) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._renewed = 0.0
        """When it was last taken or renewed: when that was begun, as nobody knows when the server wrote it."""
        self._said = ""
        """Why it could not be written the last time."""
        self._seen: tuple[str, float] = ("", 0.0)
        """The last version of somebody else's lease, and when by our clock it was first seen: clocks may differ."""

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        said = ""
        # An answer that takes longer leaves too little of the Lease to renew it in.
        while not await self._try(self._seconds / 3):
            holder = self._seen[0].partition("@")[0]
            if holder != said:
                said = holder
                log.info("another operator acts; waiting for its Lease", holder=holder)
            await asyncio.sleep(self._seconds / _RENEWALS)

    async def keep(self) -> None:
        """Renew it for ever. Raises LeaseLostError."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._seconds / _RENEWALS)
            deadline = self._renewed + self._seconds * 2 / 3
            held = await self._try(deadline - loop.time())
            if held is False:
                raise LeaseLostError("somebody else has taken the Lease")
            if not held and loop.time() >= deadline:
                raise LeaseLostError("the Lease could not be renewed in time")

    async def release(self) -> None:
        """Let the next one begin at once. Only after all work has ended."""
        # A renewal that was cut off may still be on its way and get in between.
        for _ in range(2):
            with contextlib.suppress(ApiError):
                lease = await self._cluster.get(LEASE, self._namespace, self._name)
                if lease is not None and _holder(lease) == self._identity:
                    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._cluster.replace(lease)
                return

    async def _try(self, seconds: float) -> bool | None:
        """Create, take or renew. None where the API server gave no answer, which changes nothing by itself."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(seconds):
                ours = await self._write()
        except (ApiError, TimeoutError) as error:
            reason = str(error) or "the API server takes too long"
            if reason != self._said:
                log.warning("the Lease cannot be written", reason=reason)
            self._said = reason
            return None
        self._said = ""
        if ours:
            self._renewed = started
        return ours

    async def _write(self) -> bool:
        """Says whether it is ours then."""
        lease = await self._cluster.get(LEASE, self._namespace, self._name)
        if lease is None:
            await self._cluster.create(self._written({"spec": {}}))
        elif self._may_take(lease):
            await self._cluster.replace(self._written(lease))
        else:
            return False
        return True

    def _may_take(self, lease: Object) -> bool:
        holder = _holder(lease)
        if holder in ("", self._identity):
            return True
        version = f"{holder}@{lease['metadata']['resourceVersion']}"
        now = asyncio.get_running_loop().time()
        if version != self._seen[0]:
            self._seen = (version, now)
        return now - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or self._seconds)

    def _written(self, lease: Object) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = dict(lease.get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            transitions = int(spec.get("leaseTransitions") or 0)
            spec |= {"acquireTime": now, "leaseTransitions": transitions + bool(spec.get("holderIdentity"))}
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._seconds),
            "renewTime": now,
        }
        metadata = lease.get("metadata") or {"namespace": self._namespace, "name": self._name}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec}


def _holder(lease: Object) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")
