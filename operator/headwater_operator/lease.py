"""The Lease that makes sure that only one operator acts.

Whoever finds it free, or not renewed for as long as it says, writes itself in; the API server lets only one of two
writers win. The holder renews it, and gives up well before anyone else may take it: a call that hangs counts as failed.
"""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Final

import structlog

from headwater_operator.api import ApiError, Cluster
from headwater_operator.kinds import LEASE, Object

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
        self._held: Object | None = None
        self._seen: tuple[str, float] = ("", 0.0)
        """The last version of somebody else's lease, and when by our clock it was first seen: clocks may differ."""

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        said = ""
        while not await self._try():
            holder = self._seen[0].partition("@")[0]
            if holder != said:
                said = holder
                log.info("another operator acts; waiting for its Lease", holder=holder)
            await asyncio.sleep(self._seconds / _RENEWALS)

    async def keep(self) -> None:
        """Renew it for ever. Raises LeaseLostError."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self._seconds / _RENEWALS)
            started = loop.time()
            left = renewed + self._seconds * 2 / 3 - started
            try:
                async with asyncio.timeout(max(left, 0)):
                    held = await self._try()
            except TimeoutError:
                raise LeaseLostError("the Lease could not be renewed in time") from None
            if held:
                renewed = started
            elif self._held is None:
                raise LeaseLostError("somebody else has taken the Lease")

    async def release(self) -> None:
        """Let the next one begin at once. Only after all work has ended."""
        if self._held is not None:
            self._held["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            with contextlib.suppress(ApiError):
                await self._cluster.replace(self._held)
            self._held = None

    async def _try(self) -> bool:
        """Create, take or renew. False also where the API server cannot be asked, which changes nothing by itself."""
        try:
            lease = await self._cluster.get(LEASE, self._namespace, self._name)
            if lease is None:
                self._held = await self._cluster.create(self._written({"spec": {}}))
                return True
            if not self._may_take(lease):
                self._held = None
                return False
            self._held = await self._cluster.replace(self._written(lease))
        except ApiError as error:
            log.warning("the Lease cannot be written", reason=str(error))
            return False
        return True

    def _may_take(self, lease: Object) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        version = f"{holder}@{lease['metadata']['resourceVersion']}"
        now = asyncio.get_running_loop().time()
        if version != self._seen[0]:
            self._seen = (version, now)
        return now - self._seen[1] > float(spec.get("leaseDurationSeconds") or self._seconds)

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
