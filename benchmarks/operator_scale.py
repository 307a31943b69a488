"""The operator with many ModelDeployments: how long its loop is held up, and what a resync at rest costs.

    python -m benchmarks.operator_scale --count 1000 --namespaces 1

An API server in this process takes what is applied, answers in JSON, and tells of every change as a watch would; pods
are ready half a second after their Deployment. What it costs itself counts as the operator's: figures are upper bounds,
but for the watches' own thread, which is not here.

Beside the lag that the operator measures itself, which a busy machine makes longer, it says how much CPU time the
longest turn of the loop took.
"""

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from headwater.kubernetes import FIELD_MANAGER
from headwater.lag import LoopLag
from headwater_operator import main
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.kinds import (
    CLAIM,
    DEPLOYMENT,
    POD,
    Kind,
    Object,
    kind_of,
    labels_of,
    name_of,
    namespace_of,
)
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics

_PAGE = 100
_STARTS = 0.5
_NOISE = [{"manager": "m", "operation": "Apply", "fieldsV1": {f"f:field-{n}": {"f:of": {}} for n in range(60)}}]
"""As much as the API server notes on each object."""


class Server(Cluster):
    def __init__(self) -> None:
        self.calls = 0
        self.observed: Callable[[Object, bool], None] = lambda manifest, gone: None
        self._objects: dict[tuple[str, str, str], str] = {}
        self._versions = itertools.count(1)

    async def list(
        self, kind: Kind, namespace: str | None, selector: str = "", fields: str = ""
    ) -> tuple[list[Object], int]:
        found = [
            text for place, text in self._objects.items() if place[0] == kind.name and namespace in (None, place[1])
        ]
        items: list[Object] = []
        for start in range(0, len(found), _PAGE):
            page = json.loads('{"items":[' + ",".join(found[start : start + _PAGE]) + "]}")
            items += [{"apiVersion": kind.api_version, "kind": kind.name} | item for item in page["items"]]
            await self._answered()
        return items, next(self._versions)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        await self._answered()
        text = self._objects.get((kind.name, namespace, name))
        return json.loads(text) if text is not None else None

    async def apply(self, manifest: Object, *, manager: str = FIELD_MANAGER, subresource: str | None = None) -> Object:
        await self._answered()
        return self.put(manifest)

    async def try_out(self, manifest: Object) -> None:
        await self._answered()

    async def create(self, manifest: Object) -> Object:
        await self._answered()
        number = next(self._versions)
        return manifest | {
            "metadata": manifest["metadata"] | {"name": f"event-{number}", "resourceVersion": str(number)}
        }

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, subresource: str | None = None
    ) -> Object:
        await self._answered()
        return patch

    def put(self, manifest: Object) -> Object:
        place = kind_of(manifest).name, namespace_of(manifest), name_of(manifest)
        number = next(self._versions)
        live = json.loads(self._objects[place]) if place in self._objects else {"metadata": {"uid": f"uid-{number}"}}
        made = {"creationTimestamp": datetime.now(UTC).isoformat(), "generation": 1, "managedFields": _NOISE}
        merged = live | manifest | {"metadata": made | live["metadata"] | manifest["metadata"]}
        merged["metadata"]["resourceVersion"] = str(number)
        self._objects[place] = text = json.dumps(merged)
        asyncio.get_running_loop().call_soon(lambda: self.observed(json.loads(text), False))
        if place[0] == DEPLOYMENT.name:
            asyncio.get_running_loop().call_later(_STARTS, self._start, merged)
        return merged

    def _start(self, deployment: Object) -> None:
        template = deployment["spec"]["template"]
        owner = {"kind": "ReplicaSet", "name": name_of(deployment), "uid": f"rs-{deployment['metadata']['uid']}"}
        metadata = {
            "namespace": namespace_of(deployment),
            "name": f"{name_of(deployment)}-pod",
            "labels": labels_of({"metadata": template["metadata"]}),
            "ownerReferences": [owner],
        }
        running = {"name": "engine", "restartCount": 0, "state": {"running": {}}}
        conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
        status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions, "containerStatuses": [running]}
        self.put(
            {"apiVersion": "v1", "kind": POD.name, "metadata": metadata, "spec": template["spec"], "status": status}
        )

    async def _answered(self) -> None:
        self.calls += 1
        await asyncio.sleep(0)


def resource(name: str, namespace: str, weights: bool) -> Object:
    spec: dict[str, Any] = {"model": {"source": "hf://lab/model"}, "backend": {"type": "vllm"}, "replicas": 1}
    spec["weights"] = {"cached": weights}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": spec}


class Loop(asyncio.SelectorEventLoop):
    longest = 0.0
    """Seconds of CPU time of one turn."""

    def _run_once(self) -> None:
        before = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest = max(self.longest, time.thread_time() - before)


class Measured:
    def __init__(self, what: str, server: Server) -> None:
        self._what, self._server = what, server
        self._lag = LoopLag(window=float("inf"))
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        self._loop = loop

    async def __aenter__(self) -> None:
        self._measuring = asyncio.create_task(self._lag.run())
        await asyncio.sleep(0)
        self._loop.longest = 0.0
        self._calls, self._cpu, self._began = self._server.calls, time.process_time(), time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        cpu, took = time.process_time() - self._cpu, time.monotonic() - self._began
        self._measuring.cancel()
        print(
            f"{self._what}: {cpu:.2f} s CPU, {took:.1f} s, {self._server.calls - self._calls} calls, "
            f"loop held up for {self._lag.longest * 1000:.0f} ms at most, {self._loop.longest * 1000:.0f} ms of CPU"
        )


async def idle(controller: main.ReconcileLoop) -> None:
    while controller.waiting or controller._since:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def measure(count: int, namespaces: int, weights: bool) -> None:
    server, metrics = Server(), OperatorMetrics()
    settings = OperatorSettings(engine_image="engine:1", resync_interval=1e6)
    controller = main._build(settings, server, metrics, "operator", httpx.AsyncClient())
    server.observed = controller.observed
    working = asyncio.create_task(controller.run())
    async with Measured(f"{count} over {namespaces} namespaces settle", server):
        for number in range(count):
            server.put(resource(f"model-{number:04}", f"team-{number % namespaces}", weights))
            await asyncio.sleep(0)
        if weights:
            await _fill(server, count, namespaces)
        for _ in range(3):
            await idle(controller)
            await asyncio.sleep(2 * _STARTS)
    ready = sum(_ready(json.loads(text)) for place, text in server._objects.items() if place[0] == "ModelDeployment")
    assert ready == count, f"{ready} of {count} are ready"
    async with Measured("a resync at rest", server):
        await controller.load()
        await idle(controller)
    working.cancel()


async def _fill(server: Server, count: int, namespaces: int) -> None:
    for _ in range(600):
        await asyncio.sleep(0.1)
        claims = [place for place in server._objects if place[0] == CLAIM.name]
        if len(claims) == min(count, namespaces):
            break
    for place in claims:
        claim = json.loads(server._objects[place])
        claim["metadata"]["annotations"] |= {"headwater.dev/filled": "true"}
        server.put(claim | {"status": {"phase": "Bound"}})


def _ready(each: Object) -> bool:
    conditions = (each.get("status") or {}).get("conditions") or []
    return any(it["type"] == "Ready" and it["status"] == "True" for it in conditions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--namespaces", type=int, default=1)
    parser.add_argument("--weights", action="store_true", help="all with the same weights, on a volume")
    given = parser.parse_args()
    main.configure_logging("error")
    print(f"load average {os.getloadavg()[0]:.1f}")
    main.spare_the_collector()
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(measure(given.count, given.namespaces, given.weights))
