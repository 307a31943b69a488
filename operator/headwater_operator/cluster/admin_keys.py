"""The keys that engines ask for before they are changed: one for each ModelDeployment, known to it and to the operator.

A right to read Secrets would be one to read everybody's. So the operator reads a single one, its own, in its own
namespace, and all keys follow from what is in there: it can make them anew and has to look none up. Into the namespaces
of ModelDeployments it only writes.
"""

import base64
import hashlib
import hmac
import secrets
from typing import Final

from headwater.kubernetes import LABEL_MANAGED_BY, MANAGED_BY
from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import SECRET, Key, Object
from headwater_operator.config import OperatorSettings

_FIELD: Final = "key"
_BYTES: Final = 32
_EXISTS: Final = 409


class AdminKeys:
    def __init__(self, settings: OperatorSettings, cluster: Cluster) -> None:
        self._place = settings.lease_namespace, f"{settings.lease_name}-key"
        self._cluster = cluster
        self._root: bytes | None = None

    async def of(self, key: Key) -> str:
        """The same for all of a ModelDeployment's lives, as its engines may outlive it. Raises ApiError."""
        if self._root is None:
            self._root = await self._read() or await self._make()
        return hmac.new(self._root, f"admin key of {key}".encode(), hashlib.sha256).hexdigest()

    async def put(self, secret: Object) -> None:
        """Have this Secret be there. Raises ApiError."""
        try:
            await self._cluster.create(secret)
        except ApiError as error:
            if error.status != _EXISTS:
                raise

    async def _read(self) -> bytes | None:
        found = await self._cluster.get(SECRET, *self._place)
        return base64.b64decode(found["data"][_FIELD]) if found is not None else None

    async def _make(self) -> bytes:
        namespace, name = self._place
        root = secrets.token_bytes(_BYTES)
        try:
            await self._cluster.create(
                {
                    "apiVersion": SECRET.api_version,
                    "kind": SECRET.name,
                    "metadata": {"namespace": namespace, "name": name, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
                    "immutable": True,
                    "data": {_FIELD: base64.b64encode(root).decode()},
                }
            )
        except ApiError as error:
            # Another worker was quicker.
            if error.status != _EXISTS or (made := await self._read()) is None:
                raise
            return made
        return root
