"""Replicas of several pods: made, counted and restarted as wholes, by what lies on their StatefulSets."""

import pytest

from headwater_operator.cluster.kinds import Object, annotations_of, labels_of, name_of, uid_of
from headwater_operator.diagnose.pods import parse_time
from headwater_operator.reconcile import group_plan
from tests.operator.world import World

SPEC: Object = {"backend": {"type": "vllm"}, "parallelism": {"tensor": 2, "nodes": 2}}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def uids(world: World, group: int) -> set[str]:
    return {uid_of(pod) for pod in world.kube.pods(group=str(group))}


def group_of(world: World, number: int) -> Object:
    (found,) = (
        each for each in world.cluster.all("StatefulSet") if labels_of(each)["headwater.dev/group"] == str(number)
    )
    return found


async def test_each_replica_is_a_group(world: World) -> None:
    world.create(replicas=3, **SPEC)
    await world.settle()
    assert len(world.cluster.all("StatefulSet")) == 3 and len(world.kube.pods()) == 6
    assert world.cluster.all("Deployment") == []
    assert {name_of(each) for each in world.cluster.all("Service")} == {"m-engine", "m-workers"}
    assert world.status()["replicas"] == world.status()["readyReplicas"] == 3
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_group_counts_once_all_its_pods_are_ready(world: World) -> None:
    world.kube.loads = lambda pod: not name_of(pod).endswith("-1")
    world.create(replicas=2, **SPEC)
    await world.settle()
    assert world.status()["readyReplicas"] == 0
    assert world.condition("Ready") == ("False", "Loading")


async def test_the_members_are_noted_on_the_group(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    noted = annotations_of(group_of(world, 0))[group_plan.MEMBERS]
    assert set(noted.split(",")) == uids(world, 0)


async def test_a_container_that_restarts_restarts_its_group_and_no_other(world: World) -> None:
    world.create(replicas=2, **SPEC)
    await world.settle()
    hit, spared = uids(world, 0), uids(world, 1)
    world.kube.restart_container(next(name_of(pod) for pod in world.kube.pods(group="0")))
    await world.settle()
    assert not uids(world, 0) & hit and len(uids(world, 0)) == 2
    assert uids(world, 1) == spared
    assert world.events().count(("Warning", "GroupRestarted")) == 1
    assert world.condition("Ready") == ("True", "ReplicasReady")
    assert annotations_of(group_of(world, 0))[group_plan.RESTARTS] == "1"
    await world.at_rest()


async def test_a_member_that_is_replaced_restarts_its_group(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    hit = uids(world, 0)
    world.cluster.remove(world.kube.pods()[1])
    await world.settle()
    assert not uids(world, 0) & hit and len(uids(world, 0)) == 2
    assert world.condition("Ready") == ("True", "ReplicasReady")


def seconds_to_end(world: World, pod: Object) -> float:
    (live,) = (each for each in world.cluster.all("Pod") if uid_of(each) == uid_of(pod))
    return (parse_time(live["metadata"]["deletionTimestamp"]) - world.clock.now()).total_seconds()


async def test_a_broken_group_has_nothing_to_finish(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    world.kube.ends = lambda pod: False
    leader, worker = world.kube.pods()
    world.kube.restart_container(name_of(worker))
    await world.reconcile()
    assert seconds_to_end(world, leader) <= group_plan.BROKEN_GRACE


async def test_the_answers_of_a_group_finish_where_one_of_its_pods_is_told_to_end(world: World) -> None:
    """As when a node is drained: until that pod is gone, rank 0 has all that it needs."""
    world.create(**SPEC)
    await world.settle()
    world.kube.ends = lambda pod: False
    leader, worker = world.kube.pods()
    world.cluster.end(worker)
    await world.reconcile()
    assert seconds_to_end(world, leader) > 120


async def test_the_next_restart_waits(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    await world.settle()
    again = uids(world, 0)
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    await world.settle()
    assert uids(world, 0) == again
    seconds = await world.reconcile()
    assert seconds is not None and 0 < seconds <= 10
    world.clock.passed += seconds
    await world.settle()
    assert not uids(world, 0) & again


async def test_a_group_whose_ranks_end_again_and_again_is_no_healthy_one_in_between(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    for _ in range(2):
        world.clock.passed += 120
        world.kube.restart_container(name_of(world.kube.pods()[0]), "CUDA error")
        await world.settle()
    assert world.condition("Degraded") == ("True", "CrashLoop")
    assert world.condition("Ready") == ("False", "CrashLoop")
    assert "began anew 2 times" in world.message("Degraded") and "CUDA error" in world.message("Degraded")
    seconds = await world.reconcile()
    assert seconds is not None and seconds <= 600
    world.clock.passed += 601
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_group_whose_pods_were_drained_twice_crashes_in_no_loop(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    for _ in range(2):
        world.clock.passed += 120
        world.cluster.remove(world.kube.pods()[1])
        await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_a_group_that_never_gets_well_is_given_up_and_told_of(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    for _ in range(group_plan.RESTART_BUDGET):
        world.clock.passed += 301
        world.kube.restart_container(name_of(world.kube.pods()[0]))
        await world.settle()
    last = uids(world, 0)
    world.clock.passed += 301
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    world.kube.loads = lambda pod: False
    await world.settle()
    assert uids(world, 0) == last
    assert world.condition("Degraded") == ("True", "GroupRestartsExhausted")
    assert world.condition("Ready") == ("False", "GroupRestartsExhausted")
    world.kube.loads = lambda pod: True
    world.cluster.end(group_of(world, 0))
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected"), "deleting it begins anew, as the message says"


async def test_restarts_are_counted_over_the_operators_lives(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    for times in (1, 2):
        world.clock.passed += 60
        world.kube.restart_container(name_of(world.kube.pods()[0]))
        await world.settle()
        assert annotations_of(group_of(world, 0))[group_plan.RESTARTS] == str(times)
        await world.restart()


async def test_a_pod_of_a_lost_node_is_buried(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    world.kube.ends = lambda pod: False  # its kubelet does not answer
    lost = world.kube.pods()[0]
    world.cluster.end(lost)
    await world.settle()
    assert world.cluster.one("Pod", name_of(lost)), "it has its grace"
    world.clock.passed += lost["spec"]["terminationGracePeriodSeconds"] + 31
    await world.settle()
    assert all(uid_of(pod) != uid_of(lost) for pod in world.cluster.all("Pod"))


@pytest.mark.parametrize("replicas", [1, 4])
async def test_scaling_makes_and_removes_whole_groups(world: World, replicas: int) -> None:
    world.create(replicas=2, **SPEC)
    await world.settle()
    kept = uids(world, 0)
    world.edit(replicas=replicas)
    await world.settle()
    assert len(world.cluster.all("StatefulSet")) == replicas and len(world.kube.pods()) == 2 * replicas
    assert uids(world, 0) == kept
    assert world.condition("Ready") == ("True", "ReplicasReady")
    await world.at_rest()


async def test_a_rollout_takes_an_old_group_when_a_new_one_serves(world: World) -> None:
    world.create(replicas=2, **SPEC)
    await world.settle()
    old = {uid_of(pod) for pod in world.kube.pods()}
    world.edit(context={"maxTokens": 64})
    for _ in range(40):
        await world.reconcile()
        world.kube.step()
        world.clock.passed += 5
        assert world.status()["readyReplicas"] >= 2
    assert not {uid_of(pod) for pod in world.kube.pods()} & old
    assert world.condition("Ready") == ("True", "ReplicasReady")
    assert len(world.cluster.all("StatefulSet")) == 2


def refused(world: World, message: str) -> None:
    """No group gets pods, as its controller says."""

    def no_pods(it: Object) -> None:
        if world.cluster.one("Event", f"{name_of(it)}.1") is None:
            metadata = {"name": f"{name_of(it)}.1", "namespace": "default"}
            about = {"kind": "StatefulSet", "name": name_of(it), "uid": uid_of(it)}
            told = {"reason": "FailedCreate", "message": message, "count": 0, "type": "Warning"}
            world.cluster.add(
                {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": about} | told
            )

    world.kube._stateful_set = no_pods  # type: ignore[method-assign]


async def test_a_group_whose_pods_a_quota_refuses_is_told_of_after_a_minute(world: World) -> None:
    quota = 'create Pod m-0-0 in StatefulSet m-0 failed error: pods "m-0-0" is forbidden: exceeded quota: gpus'
    refused(world, quota)
    world.create(**SPEC)
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    again = await world.reconcile()
    assert again is not None and again <= 60
    world.clock.passed += 60
    await world.settle()
    assert world.condition("Degraded") == ("True", "PodsRefused")
    assert world.condition("Ready") == ("False", "PodsRefused")
    assert quota in world.message("Degraded") and name_of(group_of(world, 0)) in world.message("Degraded")


async def never_ready(world: World, seconds: int) -> None:
    """In steps, as a group is reconciled at least every five minutes."""
    for _ in range(seconds // 300):
        world.clock.passed += 300
        await world.settle()


async def test_a_group_that_does_not_load_in_its_time_is_told_of_as_a_deployment_is(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create(loadTimeout="10m", **SPEC)
    await world.settle()
    await never_ready(world, 900)
    assert world.condition("Degraded") == ("False", "AsExpected")
    again = await world.reconcile()
    assert again is not None and again <= 300
    await never_ready(world, 300)
    assert world.condition("Degraded") == ("True", "LoadTimeout")
    assert "raise loadTimeout" in world.message("Degraded")
    world.kube.loads = lambda pod: True
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_a_group_that_its_startup_probe_restarts_again_and_again_has_had_its_time_as_well(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create(loadTimeout="10m", **SPEC)
    await world.settle()
    for _ in range(3):
        await never_ready(world, 600)
        world.kube.restart_container(name_of(world.kube.pods()[0]))
        await world.settle()
    assert world.condition("Degraded")[0] == "True"
    await never_ready(world, 600)
    world.clock.passed += 1
    await world.settle()
    assert world.condition("Degraded") == ("True", "LoadTimeout"), "the pods are ten minutes old"


async def test_a_group_that_no_node_takes_is_told_of_in_the_scheduler_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=1)
    world.create(loadTimeout="10m", **SPEC)
    await world.settle()
    assert world.condition("Ready") == ("False", "Unschedulable")
    assert world.condition("Degraded") == ("False", "AsExpected"), "a node may be on its way"
    await never_ready(world, 1200)
    assert world.condition("Degraded") == ("True", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in world.message("Degraded")


async def test_a_group_that_served_for_long_has_all_of_its_time_once_more(world: World) -> None:
    world.create(loadTimeout="10m", **SPEC)
    await world.settle()
    world.clock.passed += 86400
    world.kube.loads = lambda pod: False
    world.cluster.remove(world.kube.pods()[1])
    await world.settle()
    assert world.status()["readyReplicas"] == 0
    await never_ready(world, 900)
    assert world.condition("Degraded") == ("False", "AsExpected")
    await never_ready(world, 300)
    assert world.condition("Degraded") == ("True", "LoadTimeout")


async def test_an_autoscaled_deployment_counts_in_groups(world: World) -> None:
    world.create(autoscaling={"min": 0, "max": 3, "inFlightPerReplica": 1}, **SPEC)
    await world.settle()
    assert world.cluster.all("StatefulSet") == []
    assert world.condition("Ready") == ("True", "ScaledToZero")
    world.clock.passed += 2
    world.report(held=2)
    await world.settle()
    assert len(world.cluster.all("StatefulSet")) == 2
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_what_changes_on_a_group_is_put_right_but_for_what_is_noted_there(world: World) -> None:
    world.create(**SPEC)
    await world.settle()
    noted = annotations_of(group_of(world, 0))[group_plan.MEMBERS]
    world.cluster.merge("StatefulSet", name_of(group_of(world, 0)), {"spec": {"replicas": 5}})
    await world.reconcile()
    assert group_of(world, 0)["spec"]["replicas"] == 2
    assert annotations_of(group_of(world, 0))[group_plan.MEMBERS] == noted
