"""A pod that will not come up by itself is told, with what to do about it; one that only takes its time is not."""

from datetime import UTC, datetime
from typing import Any

import pytest

from headwater_operator.kinds import Object
from headwater_operator.pods import EnginePod, Problem, parse_time
from tests.operator.objects import NOW, ago, container, pod

PULLED = 'Back-off pulling image "registry.example/vllm:v9": not found'
NO_SECRET = 'secret "hub-token" not found'
OUT_OF_MEMORY = {"exitCode": 137, "reason": "OOMKilled"}
BAD_FLAG = {"exitCode": 2, "reason": "Error", "message": "error: unrecognized arguments: --tensor\n"}


def problem(**status: Any) -> Problem | None:
    return EnginePod.of(pod(**status)).problem


def waiting(reason: str, message: str | None = None, **more: Any) -> Object:
    told = {"reason": reason} | ({"message": message} if message else {})
    return container(waiting=told, **more)


@pytest.mark.parametrize(
    ("stuck", "reason", "said"),
    [
        (waiting("ImagePullBackOff", PULLED), "ImagePullFailed", [PULLED, "spec.backend.image"]),
        (waiting("ErrImagePull", "unauthorized"), "ImagePullFailed", ["unauthorized", "nodes' access"]),
        (waiting("InvalidImageName"), "ImagePullFailed", ["InvalidImageName"]),
        (waiting("ErrImageNeverPull"), "ImagePullFailed", ["Never"]),
        (waiting("CreateContainerConfigError", NO_SECRET), "ConfigMissing", [NO_SECRET, "Secret"]),
        (waiting("CreateContainerError", "no such device"), "ContainerRefused", ["no such device"]),
        (waiting("RunContainerError", "exec format error"), "ContainerRefused", ["exec format error"]),
        (
            waiting("CrashLoopBackOff", "back-off 5m0s", restarts=4, last=BAD_FLAG),
            "CrashLoop",
            ["exit code 2", "unrecognized arguments: --tensor;", "kubectl logs --previous"],
        ),
        (waiting("CrashLoopBackOff", last={"exitCode": 1}), "CrashLoop", ["exit code 1;"]),
        (
            waiting("CrashLoopBackOff", restarts=1, last=OUT_OF_MEMORY),
            "OutOfMemory",
            ["resources.limits.memory", "spec.context.maxTokens"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_pass_by_itself_is_told_with_its_remedy(stuck: Object, reason: str, said: list[str]) -> None:
    found = problem(containers=[stuck])
    assert found is not None and found.reason == reason
    assert "engine" in found.message
    for part in said:
        assert part in found.message


def test_an_init_container_is_told_of_before_the_engine_that_waits_for_it() -> None:
    found = problem(
        init_containers=[container("fetch", waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 3})],
        containers=[waiting("PodInitializing")],
    )
    assert found is not None and found.reason == "CrashLoop" and "container fetch" in found.message


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"reason": "Evicted", "message": "The node was low on resource: memory."}, "low on resource"),
        ({"reason": "NodeAffinity"}, "NodeAffinity"),
        ({}, "the pod failed"),
    ],
)
def test_a_failed_pod_says_why(status: dict[str, str], said: str) -> None:
    found = problem(phase="Failed", **status)
    assert found is not None and found.reason == "PodFailed" and said in found.message


@pytest.mark.parametrize(
    "containers",
    [
        [],
        [waiting("ContainerCreating")],
        [waiting("PodInitializing")],
        [container(running={"startedAt": "2026-11-02T11:59:00Z"})],
        [container(running={}, restarts=1, last=OUT_OF_MEMORY)],
        [container(terminated={"exitCode": 0})],
    ],
)
def test_what_only_takes_its_time_is_no_problem(containers: list[Object]) -> None:
    assert problem(containers=containers) is None


def test_a_pod_that_no_node_fits_says_so_in_the_schedulers_words() -> None:
    said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    seen = EnginePod.of(pod(unschedulable=said))
    assert (seen.unschedulable, seen.problem) == (said, None)
    gated = pod()
    gated["status"]["conditions"][0] |= {"status": "False", "reason": "SchedulingGated"}
    assert EnginePod.of(gated).unschedulable is None
    assert EnginePod.of(pod()).unschedulable is None


def test_a_pod_is_ready_by_its_condition_until_it_is_about_to_go() -> None:
    assert EnginePod.of(pod(ready=True)).ready
    assert not EnginePod.of(pod()).ready
    going = EnginePod.of(pod(ready=True, created=ago(60), deleted=NOW))
    assert (going.ready, going.terminating, going.deleted, going.created) == (False, True, NOW, ago(60))


def test_a_pod_of_a_moment_ago_has_no_status_yet() -> None:
    young = pod()
    del young["status"]
    seen = EnginePod.of(young)
    assert (seen.ready, seen.running, seen.restarts, seen.address, seen.unschedulable) == (False, False, 0, None, None)


def test_what_a_group_goes_by() -> None:
    restarted = [container(running={}, restarts=2), container("sidecar", restarts=1, waiting={})]
    seen = EnginePod.of(pod("m-new-3-1", uid="7", group=3, index=1, containers=restarted, podIP="10.0.0.7"))
    assert (seen.name, seen.uid, seen.revision, seen.group, seen.index) == ("m-new-3-1", "7", "new", 3, 1)
    assert (seen.running, seen.restarts, seen.address) == (True, 3, "10.0.0.7")
    alone = EnginePod.of(pod(containers=[container("sidecar", running={})]))
    assert (alone.group, alone.index, alone.running) == (None, 0, False)


@pytest.mark.parametrize("text", ["2026-11-02T12:00:00Z", "2026-11-02T12:00:00.000000Z", "2026-11-02T13:00:00+01:00"])
def test_times_are_read_as_kubernetes_writes_them(text: str) -> None:
    assert parse_time(text) == datetime(2026, 11, 2, 12, tzinfo=UTC)
