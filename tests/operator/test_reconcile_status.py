"""The status is written when it changes, an Event once for each change, and metrics follow."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import generate_latest

from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Key, uid_of
from headwater_operator.render import CURRENT_RENDER_VERSION
from tests.operator.fake_api import Call
from tests.operator.world import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, gateway_url="https://models.example")


def status_writes(world: World) -> int:
    return sum(call.verb == "apply status" for call in world.cluster.calls)


async def test_it_is_written_only_when_it_changed(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create()
    await world.settle()
    world.cluster.calls.clear()
    for _ in range(5):
        world.clock.passed += 60
        await world.reconcile()
    assert status_writes(world) == 0, "that time passes is no news"
    world.kube.loads = lambda pod: True
    await world.settle()
    assert status_writes(world) == 1


async def test_times_are_those_of_the_change(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create()
    await world.settle()
    world.clock.passed += 3600
    world.kube.loads = lambda pod: True
    await world.settle()
    times = {each["type"]: each["lastTransitionTime"] for each in world.status()["conditions"]}
    assert times["Ready"] == times["ModelLoaded"] == "2026-11-02T13:00:00Z"
    assert times["Degraded"] == times["Routable"] == "2026-11-02T12:00:00Z"


async def test_an_event_comes_once_for_each_change(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    assert world.events().count(("Normal", "ReplicasReady")) == 1
    before = world.events()
    for _ in range(5):
        await world.reconcile()
    assert world.events() == before
    old = {uid_of(pod) for pod in world.kube.pods()}
    world.edit(context={"maxTokens": 64})
    await world.settle()
    assert not {uid_of(pod) for pod in world.kube.pods()} & old
    assert world.events().count(("Normal", "Surge")) == 1
    assert world.events().count(("Normal", "ReplicasReady")) == 2


async def test_a_new_operator_repeats_no_event(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    before = world.events()
    await world.restart()
    await world.settle()
    assert world.events() == before


async def test_events_name_the_resource_and_who_says_it(world: World) -> None:
    resource = world.create()
    await world.settle()
    event = world.cluster.all("Event")[0]
    assert event["involvedObject"]["uid"] == uid_of(resource)
    assert event["involvedObject"]["kind"] == "ModelDeployment"
    assert event["reportingInstance"] == "operator-1"
    assert event["metadata"]["namespace"] == "default"


async def test_who_sees_what_a_gateway_says(world: World) -> None:
    world.create()
    await world.settle()
    assert world.condition("Routable") == ("Unknown", "NoReport")
    assert world.report(ready=0) == {Key("default", "m")}
    await world.settle()
    assert world.condition("Routable") == ("False", "NoEndpoint")
    assert world.report(ready=1) == {Key("default", "m")}
    await world.settle()
    assert world.condition("Routable") == ("True", "Routed")
    assert world.report(ready=2) == set(), "nothing that the status shows"


async def test_it_says_which_share_it_gets_of_what(world: World) -> None:
    world.create()
    await world.settle()
    assert "shares" not in world.status()
    assert world.report(shares={("m", "plain"): 0.31, ("chat", "shared"): 0.98}) >= {Key("default", "m")}
    await world.settle()
    shown = [{"name": "chat", "class": "shared", "percent": 100}, {"name": "m", "class": "plain", "percent": 30}]
    assert world.status()["shares"] == shown
    await world.restart()
    await world.settle()
    assert world.status()["shares"] == shown, "until the new operator has asked"


async def test_it_says_where_it_is_served_and_by_what(world: World) -> None:
    world.create()
    await world.settle()
    assert world.status()["url"] == "https://models.example"
    assert world.status()["backend"] == "headwater"
    assert world.status()["renderVersion"] == CURRENT_RENDER_VERSION


async def test_a_status_that_somebody_else_wrote_is_put_right(world: World) -> None:
    world.create()
    await world.settle()
    world.cluster.merge("ModelDeployment", "m", {"status": {"phase": "Failed", "readyReplicas": 9}})
    await world.settle()
    assert world.status()["phase"] == "Ready" and world.status()["readyReplicas"] == 1


async def test_a_part_that_no_longer_applies_goes(world: World) -> None:
    world.create(backend={"type": "vllm"}, adapters=[{"name": "sql", "source": "hf://owner/sql"}])
    await world.settle()
    assert world.status()["adapters"]
    world.edit(adapters=[])
    await world.settle()
    assert "adapters" not in world.status()


async def test_no_replicas_because_the_spec_says_so_is_not_ready(world: World) -> None:
    world.create(replicas=0)
    await world.settle()
    assert world.condition("Ready") == ("False", "NoReplicas")
    assert world.status()["phase"] == "ScaledToZero"


async def test_a_pod_that_no_node_has_room_for_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=1)
    world.create(replicas=2)
    await world.settle()
    assert world.condition("Ready") == ("False", "Unschedulable")
    assert "1 of 2" in world.message("Ready") and "Insufficient nvidia.com/gpu" in world.message("Ready")


async def test_metrics_follow_and_are_forgotten_with_the_resource(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    page = generate_latest(world.metrics.registry).decode()
    assert 'headwater_operator_desired_replicas{deployment="m",namespace="default"} 2.0' in page
    assert 'headwater_operator_ready_replicas{deployment="m",namespace="default"} 2.0' in page
    world.delete()
    await world.reconcile()
    page = generate_latest(world.metrics.registry).decode()
    assert 'deployment="m"' not in page


class Killed(BaseException):
    """What ends a process asks nobody."""


def killed_before(call: int) -> Callable[[Call], None]:
    left = itertools.count(call, -1)

    def refuses(_: Call) -> None:
        if next(left) == 0:
            raise Killed

    return refuses


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({}, {("Normal", "Loading"), ("Normal", "ReplicasReady")}),
        ({"backend": {"type": "tgi"}}, {("Warning", "Unsupported")}),
        ({"backend": {"env": {"HF_TOKEN": "hf_abcdefghijklmnop"}}}, {("Warning", "PlainTextToken")}),
    ],
)
async def test_an_event_is_told_whenever_the_operator_is_killed(
    monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], told: set[tuple[str, str]]
) -> None:
    for number in range(100):
        world = World(monkeypatch)
        world.create(**spec)
        world.cluster.refuses = killed_before(number)
        try:
            await world.settle()
            break  # it makes fewer calls
        except Killed:
            await world.restart()
            await world.settle()
        assert told <= set(world.events()), f"killed at call {number}"
    else:
        raise AssertionError("it never comes to rest")
    assert number > 1


async def test_an_event_is_not_told_again_and_again_of_a_status_that_cannot_be_written(world: World) -> None:
    world.create(backend={"type": "tgi"})
    world.cluster.refuses = lambda call: ApiError(500, "InternalError", "no") if call.verb == "apply status" else None
    for _ in range(3):
        with pytest.raises(ApiError):
            await world.reconcile()
    assert world.events().count(("Warning", "Unsupported")) == 1
    world.cluster.refuses = lambda call: None
    await world.settle()
    assert world.events().count(("Warning", "Unsupported")) == 1
