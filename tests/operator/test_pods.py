"""A pod that will not come up by itself is told, with what to do about it; one that only takes its time is not."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headwater_operator.cluster.kinds import Object
from headwater_operator.diagnose.pods import EnginePod, Problem, finished, parse_time
from tests.operator.objects import NOW, ago, container, pod, written

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
            ["has ended 4 times", "exit code 2", "unrecognized arguments: --tensor;", "kubectl logs --previous"],
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
    ("status", "gone"),
    [
        ({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}, True),
        ({"phase": "Succeeded"}, True),
        ({"phase": "Running"}, False),
        ({"phase": "Pending"}, False),
        ({"phase": "Unknown"}, False),
    ],
)
def test_a_pod_that_has_ended_for_good_is_not_to_be_counted(status: dict[str, Any], gone: bool) -> None:
    assert finished(pod(**status)) == gone
    assert problem(**status) is None, "another one takes its place"


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


NO_HELP = (
    "0/3 nodes are available: 3 {}. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
)


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ("0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {gpu: }.", True),
        ("0/1 nodes are available: 1 Too many pods.", True),
        ("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.", True),
        ("0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.", True),
        ("0/1 nodes are available: 1 cannot allocate all claims.", True),
        (NO_HELP.format("Insufficient nvidia.com/gpu"), False),
        (
            "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 1 No "
            "preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.",
            True,
        ),
        (NO_HELP.format("node(s) didn't match Pod's node affinity/selector"), False),
        (NO_HELP.format("node(s) had untolerated taint {gpu: }"), False),
        ("pod has unbound immediate PersistentVolumeClaims. not found", False),
        (None, False),
    ],
)
def test_a_pod_lacks_room_where_the_end_of_another_would_help(said: str | None, lacks: bool) -> None:
    assert EnginePod.of(pod(unschedulable=said)).lacks_room == lacks


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
    seen = EnginePod.of(pod("m-new-3-1", uid="7", group=3, index=1, owner="6", containers=restarted, podIP="10.0.0.7"))
    assert (seen.name, seen.uid, seen.revision, seen.group, seen.index) == ("m-new-3-1", "7", "new", 3, 1)
    assert (seen.owner, seen.running, seen.restarts, seen.address) == ("6", True, 3, "10.0.0.7")
    alone = EnginePod.of(pod(containers=[container("sidecar", running={})]))
    assert (alone.owner, alone.group, alone.index, alone.running) == ("", None, 0, False)


@pytest.mark.parametrize("text", ["2026-11-02T12:00:00Z", "2026-11-02T12:00:00.000000Z", "2026-11-02T13:00:00+01:00"])
def test_times_are_read_as_kubernetes_writes_them(text: str) -> None:
    assert parse_time(text) == datetime(2026, 11, 2, 12, tzinfo=UTC)


# A crash loop

ENDED = {"exitCode": 3, "reason": "Error", "message": "boom \U0001f4a5", "finishedAt": written(ago(60))}


def test_one_that_has_ended_twice_is_a_crash_loop_until_it_has_run_for_ten_minutes() -> None:
    seen = EnginePod.of(pod(ready=True, containers=[container(running={}, restarts=2, last=ENDED)]))
    assert seen.problem is None and seen.died is not None
    assert (seen.died.problem.reason, seen.died.at) == ("CrashLoop", ago(60))
    assert "has ended 2 times" in seen.died.problem.message and "boom \U0001f4a5" in seen.died.problem.message
    assert seen.unsteady(NOW) == 540
    assert seen.unsteady(NOW + timedelta(seconds=540)) == 0


@pytest.mark.parametrize(
    "containers",
    [
        [container(running={}, restarts=1, last=ENDED)],
        [container(running={}, restarts=5, last={"exitCode": 3})],
        [container(running={})],
        [],
    ],
)
def test_a_single_end_is_no_crash_loop_and_one_of_no_known_time_is_not_told_for_ever(containers: list[Object]) -> None:
    assert EnginePod.of(pod(containers=containers)).unsteady(NOW) == 0


# Pods that do not start


def test_since_when_a_pod_waits_for_its_node_is_known() -> None:
    creating = pod(containers=[waiting("ContainerCreating")], created=ago(500))
    assert EnginePod.of(creating).waits_since == ago(500)
    creating["status"]["conditions"][0]["lastTransitionTime"] = written(ago(70))
    assert EnginePod.of(creating).waits_since == ago(70)
    assert EnginePod.of(pod(unschedulable="no room")).waits_since is None
    for begun in (container(running={}), container(restarts=1, waiting={}), container(terminated={"exitCode": 0})):
        assert EnginePod.of(pod(init_containers=[begun], containers=[waiting("PodInitializing")])).waits_since is None


def test_a_claim_that_is_not_there_is_told_with_its_name() -> None:
    said = '0/3 nodes are available: persistentvolumeclaim "models" not found. preemption: 0/3 nodes are available'
    found = EnginePod.of(pod(unschedulable=said)).problem
    assert found is not None and found.reason == "VolumeMissing"
    assert "models" in found.message and "spec.model.source" in found.message
