"""The whole operator on an API server in memory, with a clock that a test sets."""

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from headwater.kubernetes import FETCH_PORT, HTTP_PORT, LABEL_MANAGED_BY, MANAGED_BY
from headwater_operator import main
from headwater_operator.autoscaling import follow as scaling
from headwater_operator.autoscaling.gateway import DeploymentLoad, RouterPage, combine
from headwater_operator.cluster import events
from headwater_operator.cluster.kinds import CHILDREN, Key, Object, labels_of
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile import adapters as adapting
from headwater_operator.reconcile import contests, fetch_progress
from headwater_operator.reconcile import reconciler as reconcile
from tests.operator.fake_api import START, FakeCluster
from tests.operator.fake_vllm import FakeVLLM
from tests.operator.fake_workloads import FakeWorkloads

WEIGHTLESS = "file:///models/m"
"""A source that needs nothing to be fetched."""
_WATCHED = {kind.name for kind in CHILDREN}


class Clock:
    """Stands for `datetime` and for `time` in the operator's modules."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self, zone: Any = None) -> datetime:
        return START + timedelta(seconds=self.passed)

    def time(self) -> float:
        return self.now().timestamp()

    def monotonic(self) -> float:
        return self.passed


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, slots: int = 1000, **settings: Any) -> None:
        self.clock = Clock()
        for module in (reconcile, events):
            monkeypatch.setattr(module, "datetime", self.clock)
        for module in (scaling, adapting, contests, fetch_progress):
            monkeypatch.setattr(module, "time", SimpleNamespace(time=self.clock.time, monotonic=self.clock.monotonic))
        self.cluster = FakeCluster()
        self.cluster.now = lambda: self.clock.now()
        self.kube = FakeWorkloads(self.cluster, slots)
        self.engines: dict[str, FakeVLLM] = {}
        """By address; one is there as soon as it is asked."""
        self.settings: dict[str, Any] = {"engine_image": "engine:1", "gateway_service": "default/router", **settings}
        self.fetching = b""
        """What the pod of a Job tells of how far it is."""
        self.watched: dict[tuple[str, str], Object] = {}
        self.told: list[Object] = []
        """All states that watches told, one after the other."""
        self.start()

    def start(self, **settings: Any) -> None:
        """Begin as a new process of the operator, which remembers nothing; `load` comes next."""
        self.settings |= settings
        self.metrics = OperatorMetrics()
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        self.controller = main._build(
            OperatorSettings(**self.settings), self.cluster, self.metrics, "operator-1", client
        )
        self.reconciler = self.controller._reconciler
        self.scaling = self.controller._scaling
        self.keys = self.reconciler._children._keys

    async def restart(self, **settings: Any) -> None:
        self.start(**settings)
        self.cluster.news.clear()
        await self.controller.load()
        self.cluster.calls.clear()

    # What users do

    def create(self, name: str = "m", source: str = WEIGHTLESS, **spec: Any) -> Object:
        backend = {"type": "headwater", **spec.pop("backend", {})}
        return self.cluster.add(
            {
                "apiVersion": "headwater.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"model": {"source": source, **spec.pop("model", {})}, "backend": backend, **spec},
            }
        )

    def edit(self, name: str = "m", **spec: Any) -> None:
        """A merge patch of the spec: None takes away."""
        self.cluster.merge("ModelDeployment", name, {"spec": spec})

    def delete(self, name: str = "m") -> None:
        self.cluster.end(self.resource(name))

    def resource(self, name: str = "m") -> Object:
        return self.child("ModelDeployment", name)

    # What the operator does

    def deliver(self) -> None:
        """Have the watches tell what has happened."""
        for gone, manifest in self.cluster.news:
            self.told.append(manifest)
            place = manifest["kind"], manifest["metadata"]["name"]
            ours = labels_of(manifest).get(LABEL_MANAGED_BY) == MANAGED_BY
            if manifest["kind"] == "ModelDeployment" or (manifest["kind"] in _WATCHED and ours):
                self.watched[place] = manifest
                self.controller.observed(manifest, gone)
            elif place in self.watched:
                # What no longer has the label is gone, as far as a watch with a selector can see.
                del self.watched[place]
                self.controller.observed(manifest, True)
        self.cluster.news.clear()

    async def reconcile(self, name: str = "m", failures: int = 0) -> float | None:
        """And once more where engines were asked, when they have answered."""
        self.deliver()
        again = await self.reconciler.reconcile(Key("default", name), failures)
        if asked := self.controller._errands.under_way:
            await asyncio.gather(*asked)
            again = await self.reconciler.reconcile(Key("default", name), failures)
        return again

    async def settle(self, *names: str, rounds: int = 60) -> None:
        """The operator and steps of the cluster by turns, until nothing changes any more."""
        for _ in range(rounds):
            before = self.cluster.version
            for name in names or ("m",):
                await self.reconcile(name)
            self.kube.step()
            if self.cluster.version == before:
                return
        raise AssertionError("it never comes to rest")

    async def at_rest(self, *names: str) -> None:
        """Nothing to do, and no call for finding that out."""
        self.cluster.calls.clear()
        await self.settle(*names)
        assert self.cluster.calls == []

    no_report = combine([])

    def report(
        self,
        in_flight: int = 0,
        held: int = 0,
        *,
        ready: int = 1,
        pods: Mapping[str, int] | None = None,
        failures: Mapping[str, str] | None = None,
        name: str = "m",
        shares: Mapping[tuple[str, str], float] | None = None,
    ) -> set[Key]:
        """What the gateway says. Returns who has to be reconciled."""
        load = DeploymentLoad(in_flight, held, ready)
        found = {("default", name): shares} if shares else {}
        return self.scaling._take(combine([RouterPage({("default", name): load}, pods or {}, found)], failures))

    # What there is

    def child(self, kind: str, name: str = "m") -> Object:
        found = self.cluster.one(kind, name)
        assert found is not None, f"there is no {kind} {name}, but {sorted(self.cluster.objects)}"
        return found

    def replicas(self) -> int:
        return int(self.child("Deployment")["spec"]["replicas"])

    def once_had(self) -> list[int]:
        """All numbers of replicas that the Deployment was told to have since it was last asked, but the last."""
        self.deliver()
        counts = [each["spec"]["replicas"] for each in self.told if each["kind"] == "Deployment"]
        self.told.clear()
        return [count for count in counts if count != self.replicas()]

    def status(self, name: str = "m") -> dict[str, Any]:
        return self.resource(name).get("status") or {}

    def condition(self, kind: str, name: str = "m") -> tuple[str, str]:
        """Status and reason."""
        conditions = {each["type"]: each for each in self.status(name).get("conditions") or []}
        return conditions[kind]["status"], conditions[kind]["reason"]

    def message(self, kind: str, name: str = "m") -> str:
        return next(str(each["message"]) for each in self.status(name)["conditions"] if each["type"] == kind)

    def events(self) -> list[tuple[str, str]]:
        """Type and reason, as often as they were told, in the order in which they were told last."""
        found = sorted(self.cluster.all("Event"), key=lambda each: int(each["metadata"]["resourceVersion"]))
        return [(each["type"], each["reason"]) for each in found for _ in range(each["count"])]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.port == FETCH_PORT:
            return httpx.Response(200, content=self.fetching) if self.fetching else httpx.Response(503)
        assert request.url.port == HTTP_PORT
        engine = self.engines.setdefault(request.url.host, FakeVLLM())
        if request.method == "GET":
            return httpx.Response(200, json=engine.models())
        status, body = engine.post(request.url.path, json.loads(request.content), request.headers.get("authorization"))
        return httpx.Response(status, json=body)
