"""A pod that cannot start is told in the words of its node; one that only loads a large image is not."""

from datetime import timedelta
from typing import Any

import pytest

from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Object, name_of
from headwater_operator.diagnose.startup import Startup, Waiting, told
from tests.operator.fake_api import Call, FakeCluster
from tests.operator.objects import NOW, ago, written
from tests.operator.world import World

MOUNT = 'MountVolume.SetUp failed for volume "certs" : secret "certs" not found'


def event(reason: str, seconds_ago: float, message: str = "", **more: Any) -> Object:
    metadata = {"name": f"{reason}-{seconds_ago}", "creationTimestamp": written(ago(3600))}
    return {
        "metadata": metadata,
        "reason": reason,
        "message": message,
        "lastTimestamp": written(ago(seconds_ago)),
    } | more


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event("FailedMount", 10, MOUNT)], "FailedMount"),
        ([event("Scheduled", 90), event("FailedAttachVolume", 10, "Multi-Attach error")], "FailedAttachVolume"),
        ([event("FailedCreatePodSandBox", 10, "no network")], "FailedCreatePodSandBox"),
        ([event("FailedMount", 50, MOUNT), event("Pulling", 40)], None),
        ([event("Pulling", 50), event("FailedMount", 40, MOUNT)], "FailedMount"),
        ([event("Pulling", 50), event("BackOff", 10, "whatever")], None),
        ([event("FailedMount", 0, lastTimestamp=None, eventTime=written(NOW))], "FailedMount"),
        ([event("SuccessfulCreate", 10), event("FailedCreate", 10, "exceeded quota")], "PodsRefused"),
        ([event("FailedCreate", 20, "exceeded quota"), event("SuccessfulCreate", 10)], None),
        ([event("ProvisioningFailed", 10, 'storageclass.storage.k8s.io "fast" not found')], "VolumePending"),
        ([event("ProvisioningFailed", 50, "busy"), event("ExternalProvisioning", 10)], None),
        ([event("VolumeMismatch", 10, "Cannot bind to requested volume")], "VolumePending"),
        ([event("WaitForFirstConsumer", 10)], None),
        ([], None),
    ],
)
def test_the_last_event_that_says_how_far_a_pod_is_decides(events: list[Object], reason: str | None) -> None:
    found = told(Waiting("1", "pod p", NOW), events)
    assert (found.reason if found else None) == reason


def hold_back(world: World, *events: Object) -> None:
    """Pods get a node and no more."""

    def pod(each: Object) -> None:
        if "nodeName" not in each["spec"]:
            scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": written(world.clock.now())}
            world.cluster.merge("Pod", each["metadata"]["name"], {"spec": {"nodeName": "node"}}, manager="scheduler")
            world.kube._told(each, {"phase": "Pending", "conditions": [scheduled]})
            for number, its in enumerate(events):
                whose = {"kind": "Pod", "name": each["metadata"]["name"], "uid": each["metadata"]["uid"]}
                metadata = {"name": f"{whose['name']}.{number}", "namespace": "default"}
                world.cluster.add(
                    {"apiVersion": "v1", "kind": "Event", "count": 0, "type": "Warning"}
                    | its
                    | {"metadata": metadata, "involvedObject": whose}
                )

    world.kube._pod = pod  # type: ignore[method-assign]


async def test_a_secret_that_cannot_be_mounted_becomes_the_condition_after_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    hold_back(world, event("FailedMount", 0, MOUNT))
    world.create()
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert "list" not in {call.verb for call in world.cluster.calls}, "most pods start within a minute"
    again = await world.reconcile()
    assert again == 60
    world.clock.passed += 60
    await world.settle()
    assert world.condition("Degraded") == ("True", "FailedMount")
    assert MOUNT in world.message("Degraded")
    assert world.condition("Ready") == ("False", "FailedMount")
    world.cluster.calls.clear()
    await world.reconcile()
    assert world.cluster.calls == [], "and is not asked for every time"
    world.clock.passed += 30
    assert await world.reconcile() == 30
    assert [call.verb for call in world.cluster.calls] == ["list"]


async def test_where_events_may_not_be_read_all_else_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    hold_back(world, event("FailedMount", 0, MOUNT))

    def answer(call: Call) -> ApiError | None:
        return ApiError(403, "Forbidden", "not you") if (call.verb, call.kind) == ("list", "Event") else None

    world.cluster.refuses = answer
    world.create()
    await world.settle()
    world.clock.passed += 60
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.condition("Ready") == ("False", "Loading")


async def test_of_many_that_wait_each_has_its_turn() -> None:
    cluster = FakeCluster()
    those = [Waiting(f"uid-{each}", f"pod m-{each}", ago(100 - each)) for each in range(8)]
    metadata = {"name": "e", "namespace": "default"}
    told = event("FailedMount", 5, MOUNT) | {"metadata": metadata, "involvedObject": {"uid": "uid-7"}}
    cluster.add({"apiVersion": "v1", "kind": "Event"} | told)
    startup, found = Startup(cluster), []
    for seconds in (0, 1, 30, 31, 60, 90):
        found.append(await startup.problem("default", those, NOW + timedelta(seconds=seconds)))
    assert [problem and problem.reason for problem, _ in found] == [None] * 4 + ["FailedMount"] * 2
    assert {again for _, again in found} == {30}
    assert len(cluster.calls) == 3 * 4, "three in half a minute, however often it is reconciled"


async def test_what_an_earlier_pod_of_the_same_name_was_told_is_not_this_one_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods of groups are called alike."""
    world = World(monkeypatch)
    hold_back(world, event("FailedMount", 0, MOUNT))
    world.create(backend={"type": "vllm"}, parallelism={"tensor": 2, "nodes": 2})
    await world.settle()
    for each in world.cluster.all("Event"):
        world.cluster.merge("Event", name_of(each), {"involvedObject": {"uid": "an-earlier-one"}})
    world.clock.passed += 60
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
