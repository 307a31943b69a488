"""A cluster as the router sees it: its objects, and an API server over real HTTP that lists and watches them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

Object = dict[str, Any]

SECRET = "what-nobody-but-the-engine-may-know"
COLUMNS = ("Name", "Ready", "Status", "Restarts", "Age", "IP", "Node")
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
_PLURALS = {"ModelDeployment": "modeldeployments", "EndpointSlice": "endpointslices", "Pod": "pods"}


def model(name: str = "m", namespace: str = "default", **spec: Any) -> Object:
    return {
        "apiVersion": "headwater.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"source": "hf://org/weights", **spec.pop("model", {})}, **spec},
    }


def pod(name: str = "m-1", deployment: str = "m", namespace: str = "default", **settings: Any) -> Object:
    """`uid`, `backend`, `address` (None: it has none yet), `ending`."""
    metadata: Object = {"name": name, "namespace": namespace, "uid": settings.get("uid", f"uid-of-{name}")}
    metadata["labels"] = {
        "headwater.dev/deployment": deployment,
        "headwater.dev/backend": settings.get("backend", "vllm"),
    }
    if settings.get("ending"):
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    secret = {"containers": [{"name": "engine", "env": [{"name": "TOKEN", "value": SECRET}]}]}
    status = {"phase": "Running"} | ({"podIP": address} if (address := settings.get("address", "10.0.0.1")) else {})
    return {"kind": "Pod", "metadata": metadata, "spec": secret, "status": status}


def row(pod: Object) -> Object:
    """As it stands in the API server's table."""
    cells = [pod["metadata"]["name"], "1/1", "Running", 0, "5m", pod["status"].get("podIP", "<none>"), "node-1"]
    partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": pod["metadata"]}
    return {"cells": cells, "object": partial}


def table(*pods: Object, version: str = "1", more: str = "", columns: bool = True) -> Object:
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version, "continue": more},
        "columnDefinitions": [{"name": name, "type": "string"} for name in COLUMNS] if columns else None,
        "rows": [row(each) for each in pods],
    }


def member(pod: Object, address: str = "10.0.0.1", **conditions: bool) -> Object:
    """A pod as it stands in a slice."""
    metadata = pod["metadata"]
    target = {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
    return {"addresses": [address], "conditions": {"ready": True} | conditions, "targetRef": target}


def endpoint_slice(
    *members: Object, name: str = "m-engine-1", deployment: str = "m", namespace: str = "default", **settings: Any
) -> Object:
    """`port` (None: it has none), `events_port`, `service`, `family`."""
    service = settings.get("service", f"{deployment}-engine")
    ports = [{"name": "http", "port": port}] if (port := settings.get("port", 8000)) else []
    if events_port := settings.get("events_port"):
        ports.append({"name": "kv-events", "port": events_port})
    labels = {"headwater.dev/deployment": deployment, "kubernetes.io/service-name": service}
    return {
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "addressType": settings.get("family", "IPv4"),
        "ports": ports,
        "endpoints": list(members),
    }


def replica(
    port: int, name: str = "m-1", deployment: str = "m", namespace: str = "default", **settings: Any
) -> list[Object]:
    """A pod that listens on a port of this machine, in a slice of its own."""
    its = pod(name, deployment, namespace, **{"address": "127.0.0.1"} | settings)
    listed = member(its, "127.0.0.1")
    return [its, endpoint_slice(listed, name=name, deployment=deployment, namespace=namespace, port=port)]


@dataclass(slots=True, eq=False)
class ApiServer:
    """Change its fields to change what it does."""

    port: int = 0
    page: int = 500
    """Objects in one page of a list."""
    refusal: int | None = None
    """A status that everything is answered with."""
    expired_as_event: bool = False
    """How it says that a version is too old: within a watch, or instead of one."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and query of each so far."""
    told: str = ""
    """All that it has said of objects."""
    _objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    _version: int = 1
    _oldest: int = 0
    """The oldest version that a watch can begin from."""
    _events: list[tuple[int, str, Object]] = field(default_factory=list)
    _watches: dict["asyncio.Queue[Object | None]", tuple[str, str | None]] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    def put(self, *objects: Object) -> None:
        for each in objects:
            known = self._key(each) in self._objects
            self._objects[self._key(each)] = each
            self._tell("MODIFIED" if known else "ADDED", each)

    def remove(self, *objects: Object) -> None:
        for each in objects:
            del self._objects[self._key(each)]
            self._tell("DELETED", each)

    def forget_history(self) -> None:
        """What is older than now is 410 Gone."""
        self._version += 1
        self._oldest = self._version

    def bookmark(self) -> None:
        self._version += 1
        for queue in self._watches:
            queue.put_nowait({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self._version)}}})

    def hang_up(self) -> None:
        """End all watches, as the server does after a while."""
        for queue in self._watches:
            queue.put_nowait(None)

    def send(self, event: Object) -> None:
        for queue in self._watches:
            queue.put_nowait(event)

    @property
    def watching(self) -> int:
        return len(self._watches)

    def lists(self, plural: str) -> int:
        return sum(path.endswith(plural) and "watch" not in query for path, query in self.requests)

    def kubeconfig(self, folder: Path) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "test", "user": {"token": "secret"}}],
        }
        file = folder / "kubeconfig"
        file.write_text(json.dumps(config))
        return file

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Break all connections off; what it holds stays."""
        if self._runner is not None:
            self.hang_up()
            runner, self._runner = self._runner, None
            await runner.cleanup()

    def _key(self, each: Object) -> tuple[str, str, str]:
        return _PLURALS[each["kind"]], each["metadata"]["namespace"], each["metadata"]["name"]

    def _tell(self, kind: str, each: Object) -> None:
        self._version += 1
        each["metadata"]["resourceVersion"] = str(self._version)
        event = {"type": kind, "object": json.loads(json.dumps(each))}
        plural, namespace, _ = self._key(each)
        self._events.append((self._version, plural, event))
        for queue, (watched, place) in self._watches.items():
            if watched == plural and place in (None, namespace):
                queue.put_nowait(event)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self._runner is None:
            # Accepted while the server ends, which would wait for a watch that nobody ends.
            return web.json_response({"message": "the server ends"}, status=503)
        query = dict(request.query)
        self.requests.append((request.path, query))
        if request.headers.get("authorization") != "Bearer secret":
            return web.json_response({"message": "who are you?"}, status=401)
        if self.refusal is not None:
            return web.json_response({"message": "no"}, status=self.refusal)
        plural = request.path.rpartition("/")[2]
        parts = request.path.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else None
        if "watch" in query:
            return await self._watch(request, plural, namespace, int(query["resourceVersion"]))
        objects = [each for key, each in sorted(self._objects.items()) if key[0] == plural]
        objects = [each for each in objects if namespace in (None, each["metadata"]["namespace"])]
        start = int(query.get("continue", 0))
        more = str(start + self.page) if start + self.page < len(objects) else ""
        page = objects[start : start + self.page]
        if request.headers.get("accept") == TABLE:
            content = table(*page, version=str(self._version), more=more)
        else:
            content = {"metadata": {"resourceVersion": str(self._version), "continue": more}, "items": page}
        return self._json(content)

    def _json(self, content: Object, status: int = 200) -> web.Response:
        text = json.dumps(content)
        self.told += text
        return web.json_response(text=text, status=status)

    async def _watch(
        self, request: web.Request, plural: str, namespace: str | None, version: int
    ) -> web.StreamResponse:
        gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
        if version < self._oldest and not self.expired_as_event:
            return web.json_response(gone, status=410)
        response = web.StreamResponse()
        queue: asyncio.Queue[Object | None] = asyncio.Queue()
        if version < self._oldest:
            queue.put_nowait({"type": "ERROR", "object": gone})
        for at, kind, event in self._events:
            if at > version and kind == plural and namespace in (None, event["object"]["metadata"]["namespace"]):
                queue.put_nowait(event)
        self._watches[queue] = plural, namespace
        try:
            await response.prepare(request)
            first = True
            while (told := await queue.get()) is not None:
                if request.headers.get("accept") == TABLE:
                    told = _as_table(told, columns=first)
                    first = False
                self.told += (line := json.dumps(told))
                await response.write(line.encode() + b"\n")
        except ConnectionError:
            pass
        finally:
            del self._watches[queue]
        return response


def _as_table(event: Any, *, columns: bool) -> Any:
    """An event of a watch, as a server sends it to who asked for tables; it names the columns only once."""
    match event:
        case {"type": "ADDED" | "MODIFIED" | "DELETED", "object": {"kind": "Pod"} as its}:
            return event | {"object": table(its, version=its["metadata"]["resourceVersion"], columns=columns)}
        case {"type": "BOOKMARK", "object": its}:
            return event | {"object": table(version=its["metadata"]["resourceVersion"], columns=columns)}
        case _:
            return event


@asynccontextmanager
async def api_server() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
