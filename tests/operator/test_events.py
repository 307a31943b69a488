"""An Event for what happened, and a count for what happens again."""

from datetime import timedelta

import pytest

from headwater_operator.cluster import events as module
from headwater_operator.cluster.events import EventRecorder
from headwater_operator.cluster.kinds import Object
from tests.operator.fake_api import FakeCluster
from tests.operator.world import Clock


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "datetime", clock)
    return clock


def resource(name: str = "m") -> Object:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": "7"}
    return {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata}


def told(cluster: FakeCluster) -> list[tuple[str, int, str]]:
    return [(each["reason"], each["count"], each["message"]) for each in cluster.all("Event")]


async def test_what_comes_again_is_counted_on_the_event_that_is_there(cluster: FakeCluster, clock: Clock) -> None:
    recorder = EventRecorder(cluster, "me")
    for number in range(28):
        clock.passed += 10
        await recorder.record(resource(), "Warning", "CrashLoop", f"has ended {number} times")
    assert told(cluster) == [("CrashLoop", 28, "has ended 27 times")]
    (made,) = cluster.all("Event")
    assert made["firstTimestamp"] != made["lastTimestamp"]
    assert made["series"]["count"] == 28
    assert made["series"]["lastObservedTime"].startswith(made["lastTimestamp"].removesuffix("Z"))


async def test_what_is_no_failure_is_a_history(cluster: FakeCluster, clock: Clock) -> None:
    recorder = EventRecorder(cluster, "me")
    for message in ("from 1 to 4 replicas", "from 4 to 0 replicas", "from 1 to 4 replicas"):
        await recorder.record(resource(), "Normal", "Scaled", message)
    assert told(cluster) == [("Scaled", 2, "from 1 to 4 replicas"), ("Scaled", 1, "from 4 to 0 replicas")]


async def test_other_reasons_and_other_resources_have_events_of_their_own(cluster: FakeCluster, clock: Clock) -> None:
    recorder = EventRecorder(cluster, "me")
    await recorder.record(resource(), "Warning", "CrashLoop", "a")
    await recorder.record(resource(), "Normal", "ReplicasReady", "b")
    await recorder.record(resource("n"), "Warning", "CrashLoop", "c")
    assert sorted(told(cluster)) == [("CrashLoop", 1, "a"), ("CrashLoop", 1, "c"), ("ReplicasReady", 1, "b")]


async def test_an_event_that_is_gone_or_about_to_go_is_made_anew(cluster: FakeCluster, clock: Clock) -> None:
    recorder = EventRecorder(cluster, "me")
    await recorder.record(resource(), "Warning", "CrashLoop", "a")
    cluster.remove(cluster.all("Event")[0])
    await recorder.record(resource(), "Warning", "CrashLoop", "b")
    assert told(cluster) == [("CrashLoop", 1, "b")]
    clock.passed += timedelta(hours=1).total_seconds()
    await recorder.record(resource(), "Warning", "CrashLoop", "c")
    assert told(cluster) == [("CrashLoop", 1, "b"), ("CrashLoop", 1, "c")]


async def test_a_long_message_ends_between_two_characters(cluster: FakeCluster, clock: Clock) -> None:
    await EventRecorder(cluster, "me").record(resource(), "Warning", "CrashLoop", "x" + "\U0001f4a5" * 1000)
    message = told(cluster)[0][2]
    assert len(message.encode()) <= 1024 and set(message[1:]) == {"\U0001f4a5"}
