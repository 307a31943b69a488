"""Adapters of a running deployment: asked for as replicas get ready, believed only when listed, lost by no restart."""

import pytest

from headwater_operator.cluster.kinds import Object, name_of
from tests.operator.fake_vllm import FakeVLLM
from tests.operator.world import World

SQL: Object = {"name": "sql", "source": "hf://owner/sql"}
LAW: Object = {"name": "law", "source": "hf://owner/law"}
SPEC: Object = {"backend": {"type": "vllm"}, "adapters": [SQL]}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def engines(world: World) -> list[FakeVLLM]:
    return [world.engines[pod["status"]["podIP"]] for pod in world.kube.pods()]


async def test_each_replica_gets_them(world: World) -> None:
    world.create(replicas=2, **SPEC)
    await world.settle()
    assert [engine.adapters for engine in engines(world)] == [{"sql": "owner/sql"}] * 2
    assert world.status()["adapters"] == [{"name": "sql", "loaded": 2, "replicas": 2}]
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_replica_that_is_not_ready_is_not_asked(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create(**SPEC)
    await world.settle()
    assert world.engines == {}


async def test_adding_and_removing_restarts_nothing(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    pods = [name_of(pod) for pod in world.kube.pods()]
    world.edit(adapters=[SQL, LAW])
    await world.settle()
    assert engines(world)[0].adapters == {"sql": "owner/sql", "law": "owner/law"}
    world.edit(adapters=[LAW])
    await world.settle()
    assert engines(world)[0].adapters == {"law": "owner/law"}
    assert [name_of(pod) for pod in world.kube.pods()] == pods


async def test_pain_12_a_container_that_restarted_gets_them_back(world: World) -> None:
    world.create(replicas=2, **SPEC)
    await world.settle()
    engines(world)[0].restart()
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    await world.settle()
    assert engines(world)[0].adapters == {"sql": "owner/sql"}


async def test_pain_12_what_is_lost_without_a_trace_is_found_within_a_minute(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    engines(world)[0].restart()
    again = await world.reconcile()
    assert again is not None and again <= 60
    world.clock.passed += again
    await world.reconcile()
    assert engines(world)[0].adapters == {"sql": "owner/sql"}


async def test_pain_12_what_the_engine_does_not_list_is_not_loaded(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create(**SPEC)
    await world.settle()
    liar = FakeVLLM()
    liar.silent = {"owner/sql"}
    world.engines = {world.kube.pods()[0]["status"]["podIP"]: liar}
    world.kube.loads = lambda pod: True
    await world.settle()
    assert world.status()["adapters"][0]["loaded"] == 0
    assert world.condition("Degraded") == ("True", "AdapterNotLoaded")
    assert "sql" in world.message("Degraded")
    assert world.condition("Ready") == ("True", "ReplicasReady"), "the model itself is served"


async def test_what_failed_is_tried_again_soon(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create(**SPEC)
    await world.settle()
    broken = FakeVLLM()
    broken.broken = {"owner/sql"}
    world.engines = {world.kube.pods()[0]["status"]["podIP"]: broken}
    world.kube.loads = lambda pod: True
    await world.settle()
    assert "No adapter found" in world.status()["adapters"][0]["message"]
    broken.broken.clear()
    await world.settle()
    assert world.status()["adapters"][0]["loaded"] == 0, "not every time"
    again = await world.reconcile()
    assert again is not None and again <= 10
    world.clock.passed += again
    await world.settle()
    assert world.status()["adapters"] == [{"name": "sql", "loaded": 1, "replicas": 1}]
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_an_engine_that_has_them_is_not_asked_with_every_reconciliation(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    calls = engines(world)[0].calls[:]
    engines(world)[0].restart()
    for _ in range(5):
        await world.reconcile()
    assert engines(world)[0].calls == calls


async def test_a_new_operator_loads_nothing_twice(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    await world.restart()
    await world.settle()
    assert engines(world)[0].calls == [("load", "sql")]


async def test_of_a_group_its_first_pod_is_asked(world: World) -> None:
    world.create(parallelism={"tensor": 2, "nodes": 2}, **SPEC)
    await world.settle()
    assert len(world.engines) == 1
    assert world.status()["adapters"] == [{"name": "sql", "loaded": 1, "replicas": 1}]


async def test_the_last_one_that_goes_is_unloaded(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    address = world.kube.pods()[0]["status"]["podIP"]
    world.edit(adapters=None)
    await world.reconcile()
    assert world.engines[address].adapters == {}


async def test_what_no_pod_can_reach_is_refused(world: World) -> None:
    world.create(backend={"type": "vllm"}, adapters=[{"name": "sql", "source": "s3://bucket/sql"}])
    await world.settle()
    assert world.condition("Degraded") == ("True", "AdapterNotLoaded")
    assert "s3://bucket/sql" in world.message("Degraded")
