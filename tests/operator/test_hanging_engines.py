"""What runs in a tenant's pod may hang for as long as it likes: no worker waits for it, and nobody else does."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.virtual_clock import VirtualLoop, run
from headwater.kubernetes import (
    CONTAINER,
    FETCH_PORT,
    LABEL_COMPONENT,
    LABEL_DEPLOYMENT,
    LABEL_MANAGED_BY,
    MANAGED_BY,
)
from headwater_operator import main
from headwater_operator.cluster.kinds import CLAIM, JOB, MODEL_DEPLOYMENT, Key, Object, name_of, namespace_of, uid_of
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile import adapters, errands, fetch_progress, queue
from headwater_operator.reconcile import loop as looping
from headwater_operator.reconcile.errands import Errands
from tests.operator.fake_api import FakeCluster
from tests.operator.working import while_it_works
from tests.operator.world import WEIGHTLESS

HANG = "10.9."
"""Addresses of engines that list their models, and never get done with a load."""
SIX = [{"name": f"lora-{number}", "source": f"hf://owner/lora-{number}"} for number in range(6)]


class Tenants:
    """The operator as it is, in virtual time, with engines that hang and others that load at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = VirtualLoop()
        for module in (adapters, fetch_progress, looping, queue):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self.time.time))
        self.cluster, self.metrics = FakeCluster(), OperatorMetrics()
        self.loading: list[tuple[str, str]] = []
        """Loads that have not ended: address and adapter."""
        self.begun: list[str] = []
        self.loaded: dict[str, list[str]] = {}
        self.asked: list[tuple[float, str]] = []
        """When pods that fetch weights were asked how far they are, and their addresses."""
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        settings = OperatorSettings(engine_image="engine:1", resync_interval=1e6)
        self.loop = main._build(settings, self.cluster, self.metrics, "operator", client)

    def create(self, namespace: str, name: str, address: str, *, wanted: list[Object]) -> None:
        """A ModelDeployment with a ready pod."""
        self.resource(namespace, name, WEIGHTLESS, adapters=wanted)
        labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_DEPLOYMENT: name, LABEL_COMPONENT: "engine"}
        status = {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": CONTAINER, "restartCount": 0, "state": {"running": {}}}],
        }
        pod = {"name": f"{name}-pod", "namespace": namespace, "labels": labels}
        self.cluster.add({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": {}, "status": status})

    def resource(self, namespace: str, name: str, source: str, **spec: Any) -> None:
        self.cluster.add(
            {
                "apiVersion": MODEL_DEPLOYMENT.api_version,
                "kind": MODEL_DEPLOYMENT.name,
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"model": {"source": source}, "backend": {"type": "vllm"}, "replicas": 1, **spec},
            }
        )

    def start_fetching(self, hanging: int = 1000) -> None:
        """Give the Jobs pods that run. The first ones hang when they are asked."""
        for number, job in enumerate(self.cluster.all(JOB.name)):
            place = {"name": f"{name_of(job)}-pod", "namespace": namespace_of(job)}
            bound = {"status": {"phase": "Bound"}}
            self.cluster.merge(CLAIM.name, name_of(job), bound, namespace=namespace_of(job))
            owner = {"apiVersion": JOB.api_version, "kind": JOB.name, "name": name_of(job), "uid": uid_of(job)}
            metadata = {**place, "labels": {LABEL_MANAGED_BY: MANAGED_BY}, "ownerReferences": [owner]}
            status = {"phase": "Running", "podIP": f"{HANG if number < hanging else '10.1.'}0.{number}"}
            self.cluster.add({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": status})

    def progress(self, namespace: str, name: str) -> Object | None:
        return self.found(namespace, name)["status"]["weights"].get("progress")  # type: ignore[no-any-return]

    def found(self, namespace: str, name: str) -> Object:
        return next(
            each
            for each in self.cluster.all("ModelDeployment")
            if (each["metadata"]["namespace"], each["metadata"]["name"]) == (namespace, name)
        )

    def adapters(self, namespace: str, name: str) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in self.found(namespace, name)["status"].get("adapters", [])}

    def deliver(self) -> None:
        for gone, manifest in self.cluster.news:
            self.loop.observed(manifest, gone)
        self.cluster.news.clear()

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        run(while_it_works(self.loop, scenario), self.time)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        address = request.url.host
        if request.url.port == FETCH_PORT:
            self.asked.append((self.time.time(), address))
            if address.startswith(HANG):
                await asyncio.Event().wait()
            return httpx.Response(200, json={"bytes": 100, "percent": 7, "bytes_per_second": 1, "seconds_left": 93})
        loaded = self.loaded.setdefault(address, [])
        if request.method == "GET":
            cards = [{"id": name, "root": f"owner/{name}", "parent": "base"} for name in loaded]
            return httpx.Response(200, json={"object": "list", "data": [{"id": "base", "root": "/m"}, *cards]})
        name = str(request.content).partition('"lora_name":"')[2].partition('"')[0]
        self.begun.append(name)
        load = address, name
        self.loading.append(load)
        try:
            if address.startswith(HANG):
                await asyncio.Event().wait()
            loaded.append(name)
            return httpx.Response(200, text="Success")
        finally:
            self.loading.remove(load)


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> Tenants:
    return Tenants(monkeypatch)


def test_eight_tenants_whose_engines_hang_hold_up_no_worker_and_no_neighbour(it: Tenants) -> None:
    for number in range(8):
        it.create(f"team-{number}", "hangs", f"{HANG}0.{number}", wanted=SIX)

    async def scenario() -> None:
        for _ in range(30):
            await asyncio.sleep(1)
            assert it.loop._since == {}, "no worker waits"
            it.deliver()
        it.create("honest", "m", "10.1.0.1", wanted=SIX[:1])
        it.deliver()
        await asyncio.sleep(1)
        assert it.adapters("honest", "m") == {"lora-0": {"name": "lora-0", "loaded": 1, "replicas": 1}}
        for _ in range(120):
            await asyncio.sleep(10)
            it.deliver()
            assert it.loop.stuck() is None and it.loop._since == {}
        assert set(it.begun) == {each["name"] for each in SIX}, "one that hangs keeps no other from being tried"
        it.create("late", "m", "10.1.0.2", wanted=SIX[:1])
        it.deliver()
        await asyncio.sleep(1)
        assert it.adapters("late", "m")["lora-0"]["loaded"] == 1

    it.run(scenario)


def test_the_status_says_what_is_being_loaded_and_then_what_came_of_it(it: Tenants) -> None:
    it.create("team", "m", f"{HANG}0.1", wanted=SIX[:2])

    async def scenario() -> None:
        await asyncio.sleep(15)
        it.deliver()
        shown = it.adapters("team", "m")
        assert shown["lora-0"] == {
            "name": "lora-0",
            "loaded": 0,
            "replicas": 1,
            "message": "loading adapter lora-0 on pod m-pod",
        }
        assert shown["lora-1"]["message"] == "waits to be loaded on pod m-pod"
        assert degraded(it.found("team", "m")) == "AsExpected", "what is under way is no fault"
        for _ in range(30):
            await asyncio.sleep(10)
            it.deliver()
        assert {each["message"] for each in it.adapters("team", "m").values()} == {
            "the engine did not answer within 120 s"
        }, "and that it is tried again does not take this away"
        assert degraded(it.found("team", "m")) == "AdapterNotLoaded"

    it.run(scenario)


def degraded(resource: Object) -> str:
    return next(str(each["reason"]) for each in resource["status"]["conditions"] if each["type"] == "Degraded")


def test_a_resource_that_is_deleted_while_it_loads_is_asked_for_no_more(it: Tenants) -> None:
    it.create("team", "m", f"{HANG}0.1", wanted=SIX)

    async def scenario() -> None:
        await asyncio.sleep(15)
        it.deliver()
        assert it.loading == [(f"{HANG}0.1", "lora-0")]
        resource = it.found("team", "m")
        it.cluster.remove(resource)
        it.loop.observed(resource, True)
        await asyncio.sleep(1)
        assert it.loading == [] and it.loop._errands.under_way == []
        await asyncio.sleep(1000)
        assert it.begun == ["lora-0"]

    it.run(scenario)


def test_another_spec_ends_what_was_loaded_for_the_one_before(it: Tenants) -> None:
    it.create("team", "m", f"{HANG}0.1", wanted=SIX[:1])

    async def scenario() -> None:
        await asyncio.sleep(15)
        it.deliver()
        it.cluster.merge("ModelDeployment", "m", {"spec": {"adapters": SIX[1:2]}}, namespace="team")
        it.deliver()
        await asyncio.sleep(1)
        assert it.loading == [(f"{HANG}0.1", "lora-1")]

    it.run(scenario)


def test_nothing_is_loaded_any_more_when_the_operator_no_longer_acts(it: Tenants) -> None:
    it.create("team", "m", f"{HANG}0.1", wanted=SIX)

    async def scenario() -> None:
        await asyncio.sleep(15)
        assert it.loading

    it.run(scenario)
    assert it.loading == []


# Pods that fetch weights


def test_pods_that_fetch_and_hang_hold_up_no_worker_and_no_neighbour(it: Tenants) -> None:
    for number in range(9):
        it.resource(f"team-{number}", "m", f"hf://lab/model-{number}")

    async def scenario() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            it.deliver()
        it.start_fetching(hanging=8)
        it.deliver()
        for _ in range(200):
            await asyncio.sleep(0.1)
            assert it.loop._since == {}, "no worker waits"
            it.deliver()
        hanging = {address for _, address in it.asked if address.startswith(HANG)}
        assert len(hanging) == 8
        told = [it.progress(f"team-{number}", "m") for number in range(9)]
        assert [each for each in told if each] == [{"percent": 7, "bytes": 100, "secondsLeft": 93}]

    it.run(scenario)


@pytest.mark.parametrize("hanging", [0, 1])
def test_one_pod_is_asked_once_in_a_while_however_many_wait_for_it(it: Tenants, hanging: int) -> None:
    for number in range(20):
        it.resource("team", f"m{number}", "hf://lab/model")

    async def scenario() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            it.deliver()
        it.start_fetching(hanging)
        it.deliver()
        await asyncio.sleep(10)
        it.deliver()
        assert len(it.asked) == 1
        assert {bool(it.progress("team", f"m{number}")) for number in range(20)} == {not hanging}
        await asyncio.sleep(60)
        times = [at for at, _ in it.asked]
        assert all(later - earlier >= fetch_progress.ASKED_AGAIN for earlier, later in itertools.pairwise(times))

    it.run(scenario)


# So many at once


def errand(began: list[Key], key: Key, seconds: float) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        began.append(key)
        await asyncio.sleep(seconds)

    return work


def test_one_namespace_takes_its_own_places_and_not_those_of_others() -> None:
    async def scenario() -> None:
        began: list[Key] = []
        done: list[Key] = []
        them = Errands(done.append)
        greedy = [Key("greedy", f"m{number}") for number in range(500)]
        for key in greedy:
            them.begin(key, "pod", errand(began, key, 100))
        other = Key("other", "m")
        them.begin(other, "pod", errand(began, other, 1))
        await asyncio.sleep(2)
        assert done == [other]
        assert began.count(other) == 1 and len(began) == errands._OF_A_NAMESPACE + 1
        await asyncio.sleep(10_000)
        assert set(done) == {*greedy, other} and them.under_way == []

    run(scenario())


def test_no_more_than_there_are_connections_are_under_way_in_all() -> None:
    async def scenario() -> None:
        began: list[Key] = []
        them = Errands(lambda key: None)
        for namespace in range(100):
            for number in range(10):
                key = Key(f"team-{namespace}", f"m{number}")
                them.begin(key, "pod", errand(began, key, 100))
        await asyncio.sleep(50)
        assert len(began) == errands._AT_ONCE
        await them.end()
        assert them.under_way == []

    run(scenario())


def test_what_fails_by_a_fault_of_ours_is_not_begun_again_at_once() -> None:
    async def scenario() -> None:
        done: list[Key] = []
        them = Errands(done.append)

        async def fails() -> None:
            raise RuntimeError("a bug")

        them.begin(Key("a", "m"), "pod", fails)
        await asyncio.sleep(1)
        assert done == [] and them.under_way == []

    run(scenario())
