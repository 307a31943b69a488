"""A group that breaks begins anew, whatever else of its resource is in the way."""

from typing import Any

import pytest

from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Object, name_of, uid_of
from tests.operator.fake_api import Call
from tests.operator.world import World

SPEC: Object = {"backend": {"type": "vllm"}, "parallelism": {"tensor": 2, "nodes": 2}}
MANY: Object = {"weights": {"accessMode": "ReadWriteMany"}}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"source": "hf://owner/larger"}, **MANY}, "Downloading"),
        ({"quantization": "awq", "backend": {"type": "headwater"}}, "Unsupported"),
        ({"backend": {"type": "vllm", "args": ["--port", "9"]}}, "Unsupported"),
        ({"loadTimeout": "soon"}, "InvalidSpec"),
    ],
    ids=["weights are fetched", "the backend cannot do it", "a flag is refused", "nobody can read it"],
)
async def test_a_group_heals_while_the_next_spec_is_not_carried_out(world: World, change: Any, reason: str) -> None:
    world.create(**SPEC)
    await world.settle()
    world.edit(**change)
    await world.settle()
    assert world.condition("Ready") == ("False", reason)
    hit = {uid_of(pod) for pod in world.kube.pods()}
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    await world.settle()
    assert len(world.kube.pods()) == 2 and not {uid_of(pod) for pod in world.kube.pods()} & hit
    assert world.events().count(("Warning", "GroupRestarted")) == 1
    assert world.status()["readyReplicas"] == 1


async def test_a_group_heals_while_the_api_server_takes_nothing_new(world: World) -> None:
    world.create(**SPEC)
    await world.settle()

    def refused(call: Call) -> ApiError | None:
        return ApiError(500, "Webhook", "no answer") if call.verb == "apply" and call.kind != "Pod" else None

    world.cluster.refuses = refused
    world.edit(model={"source": "hf://owner/larger"}, **MANY)
    hit = {uid_of(pod) for pod in world.kube.pods()}
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    with pytest.raises(ApiError):
        await world.reconcile()
    assert not {uid_of(pod) for pod in world.kube.pods()} & hit, "told to end, before anything else was tried"


@pytest.mark.parametrize("strategy", ["Surge", "Replace"])
async def test_no_group_goes_for_one_that_the_api_server_refuses(world: World, strategy: str) -> None:
    world.create(**SPEC, rollout={"strategy": strategy})
    await world.settle()
    (runs,) = world.cluster.all("StatefulSet")

    def refused(call: Call) -> ApiError | None:
        news = call.kind == "StatefulSet" and call.verb in ("apply", "try") and call.name != name_of(runs)
        return ApiError(500, "", "failed to create typed patch object: nodeSelektor: not declared") if news else None

    world.cluster.refuses = refused
    world.edit(template={"spec": {"nodeSelektor": {"a": "b"}}})
    hit = {uid_of(pod) for pod in world.kube.pods()}
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    for _ in range(4):
        try:
            await world.settle()
        except ApiError:
            continue
    assert [name_of(each) for each in world.cluster.all("StatefulSet")] == [name_of(runs)]
    assert len(world.kube.pods()) == 2 and not {uid_of(pod) for pod in world.kube.pods()} & hit
    assert "nodeSelektor" in world.message("Degraded")


async def test_the_next_restart_of_a_group_whose_spec_is_refused_is_not_forgotten(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    world.edit(loadTimeout="soon")
    for _ in range(2):
        world.kube.restart_container(name_of(world.kube.pods()[0]))
        await world.settle()
    again = await world.reconcile()
    assert again is not None and again <= 10, "when the pause is over, and not when a refused spec is tried again"


async def test_a_replica_of_a_lost_node_holds_nobody_back(world: World) -> None:
    """As for groups: with a volume of one node, no other replica could be anywhere else."""
    world.create(replicas=2)
    await world.settle()
    lost = world.kube.pods()[0]
    world.kube.ends = lambda pod: uid_of(pod) != uid_of(lost)
    world.cluster.end(lost)
    await world.settle()
    world.clock.passed += lost["spec"]["terminationGracePeriodSeconds"] + 31
    await world.settle()
    assert all(uid_of(pod) != uid_of(lost) for pod in world.cluster.all("Pod"))
