"""Discovery on Kubernetes: ModelDeployments, EndpointSlices and Pods, watched for as long as the router runs.

Needs `get`, `list` and `watch` on these three, and nothing else; of Pods it asks for a table, never for their specs.
The first `World` comes when each of them has been listed; from then on each change brings another one, at once. An API
server that is away changes nothing: the router goes on with what it knows, and its own probes still tell which
endpoints are alive.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp
import structlog

from headwater.kubernetes import GROUP, LABEL_DEPLOYMENT, PLURAL, VERSION
from headwater_router.endpoints.deployments import Object, Objects, World
from headwater_router.endpoints.endpoint import EndpointError
from headwater_router.endpoints.table import PodTable
from headwater_router.endpoints.watch import FIRST_PAUSE, Watch

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

log = structlog.get_logger(__name__)

_SETTLE: Final = 0.02
"""Seconds between two worlds at least: a rollout of hundreds of pods comes in bursts."""


_USERS_FILE: Final = "~/.kube/config"


class _Kind(NamedTuple):
    plural: str
    group: str
    selector: str


_PODS: Final = "pods"
_KINDS: Final = (
    _Kind(PLURAL, f"/apis/{GROUP}/{VERSION}", ""),
    _Kind("endpointslices", "/apis/discovery.k8s.io/v1", LABEL_DEPLOYMENT),
    _Kind(_PODS, "/api/v1", LABEL_DEPLOYMENT),
)


class ApiServer:
    """GETs to the API server, as the pod's service account or as KUBECONFIG says. Import and memory only when used."""

    def __init__(self) -> None:
        self._client: ApiClient | None = None

    async def connect(self) -> None:
        """Read the configuration; nothing is sent yet. Raises EndpointError."""
        if self._client is not None:
            return
        # 60 MB and a third of a second, which a router without a cluster does not pay.
        from kubernetes_asyncio.client import ApiClient, Configuration
        from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config

        configuration = Configuration()
        configuration.connection_pool_maxsize = 0  # A watch holds its connection; there is no limit to namespaces.
        file = os.environ.get("KUBECONFIG")
        try:
            if file is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                await load_kube_config(config_file=file or _USERS_FILE, client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise EndpointError(f"--kubernetes: neither a service account nor a kubeconfig: {error}") from None
        self._client = ApiClient(configuration)

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def get(
        self, path: str, query: Mapping[str, str], patience: aiohttp.ClientTimeout, accept: str
    ) -> aiohttp.ClientResponse:
        assert self._client is not None
        response: aiohttp.ClientResponse = await self._client.call_api(
            path,
            "GET",
            query_params=[(name, value) for name, value in query.items() if value],
            header_params={"Accept": accept},
            auth_settings=["BearerToken"],  # Read anew each time: a pod's token is replaced every hour.
            _preload_content=False,
            _request_timeout=patience,
        )
        return response


class Discovery:
    """Keeps a `World` up to date."""

    def __init__(
        self, namespaces: Sequence[str], on_error: Callable[[str], None], *, first_pause: float = FIRST_PAUSE
    ) -> None:
        """`namespaces`: none means all. `on_error`: called with the kind for each try to follow it that failed."""
        self._objects = Objects()
        self._changed = asyncio.Event()
        self._server = ApiServer()
        places: list[str | None] = [*namespaces] or [None]
        self.watches = [
            Watch(
                self._server,
                self,
                kind.plural,
                kind.group,
                namespace,
                kind.selector,
                on_error,
                PodTable() if kind.plural == _PODS else None,
                first_pause,
            )
            for kind in _KINDS
            for namespace in places
        ]

    async def connect(self) -> None:
        """Raises EndpointError."""
        await self._server.connect()

    async def run(self, on_world: Callable[[World], None]) -> None:
        """Call `on_world` with each new world, until cancelled. Raises EndpointError."""
        await self.connect()
        last: World | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for watch in self.watches:
                    group.create_task(watch.run())
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    if all(watch.listed for watch in self.watches) and (world := self._objects.world()) != last:
                        last = world
                        on_world(world)
                    await asyncio.sleep(_SETTLE)
        finally:
            await self._server.close()

    # What the watches call

    def listed(self, kind: str, namespace: str | None, objects: list[Object]) -> None:
        self._objects.listed(kind, namespace, objects)
        self._changed.set()

    def changed(self, kind: str, each: Object) -> None:
        self._objects.changed(kind, each)
        self._changed.set()

    def removed(self, kind: str, each: Object) -> None:
        self._objects.removed(kind, each)
        self._changed.set()
