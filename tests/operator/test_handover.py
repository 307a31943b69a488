"""An upgrade: the former operator acts for a while yet, until it has ended and the new one has the Lease."""

from typing import Any

import pytest

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import Object, uid_of
from headwater_operator.watch import specs
from tests.operator.test_network_policy import KEPT_OUT
from tests.operator.world import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, engine_image="engine:1")


def image(world: World, name: str) -> str:
    (container,) = world.child("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return str(container["image"])


def pods(world: World) -> set[str]:
    return {uid_of(pod) for pod in world.kube.pods()}


async def test_what_the_former_operator_began_is_ended_by_the_new_one_as_it_was_begun(world: World) -> None:
    world.create("early")
    await world.settle("early")
    world.create("late", replicas=2)
    await world.reconcile("late")
    world.kube.step()
    before = pods(world)
    assert world.status("late")["readyReplicas"] == 0, "it has begun, and no more"
    await world.restart(engine_image="engine:2")
    await world.settle("early", "late")
    assert before <= pods(world), "none is restarted"
    assert (image(world, "early"), image(world, "late")) == ("engine:1", "engine:1")
    assert world.condition("Ready", "late") == ("True", "ReplicasReady")
    assert not [call for call in world.cluster.writes() if call.kind == "Deployment"]
    await world.at_rest("early", "late")
    world.edit("late", context={"maxTokens": 4096})
    await world.settle("late")
    assert image(world, "late") == "engine:2", "the next change takes what is new"


async def test_a_field_that_the_former_operator_does_not_know_costs_what_runs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its CRD is there before the new operator acts."""
    world.create(replicas=2)
    await world.settle()
    before, read = pods(world), specs._read

    def read_by_the_former(resource: Object) -> ModelDeployment:
        spec: dict[str, Any] = dict(resource["spec"])
        newer = {"newer": spec.pop("sampling")} if "sampling" in spec else {}
        return read(resource | {"spec": spec | newer})

    monkeypatch.setattr(specs, "_read", read_by_the_former)
    world.edit(sampling={"temperature": 0.2})
    await world.settle()
    assert world.condition("Degraded") == ("True", "InvalidSpec")
    assert "spec.newer" in world.message("Degraded")
    assert pods(world) == before and world.status()["readyReplicas"] == 2

    monkeypatch.setattr(specs, "_read", read)
    await world.restart()
    await world.settle()
    assert world.condition("Degraded")[0] == "False"
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_last_write_of_the_former_operator_that_comes_late_is_put_right(world: World) -> None:
    await world.restart(**KEPT_OUT)
    world.create()
    await world.settle()
    former = world.child("NetworkPolicy", "m-engine")["spec"]
    await world.restart(engine_clients=[{"podSelector": {"matchLabels": {"app": "prometheus"}}}])
    await world.settle()
    wanted = world.child("NetworkPolicy", "m-engine")["spec"]
    assert wanted != former
    world.cluster.merge("NetworkPolicy", "m-engine", {"spec": former}, manager="headwater-operator")
    await world.settle()
    assert world.child("NetworkPolicy", "m-engine")["spec"] == wanted
    assert world.condition("Degraded")[0] == "False", "once is no contest"
