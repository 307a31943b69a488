"""A volume that reaches one node keeps its replicas there, and who cannot be there is told of."""

from typing import Any

import pytest

from headwater_operator.cluster.kinds import Object, labels_of, name_of
from headwater_operator.render import Manifest
from tests.operator.world import World

HUB = "hf://owner/model"
APART = "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't match pod affinity rules."


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def serving(world: World, name: str = "m", **spec: Any) -> None:
    world.create(name, source=HUB, **spec)
    await world.settle(name)
    for job in world.cluster.all("Job"):
        world.kube.finish(name_of(job))
    await world.settle(name)


def pod_template(world: World, name: str = "m") -> Manifest:
    template: Manifest = world.child("Deployment", name)["spec"]["template"]
    return template


def move(world: World, pod: Object, node: str, **status: Any) -> None:
    """Where the scheduler has put it, and how far it is."""
    world.cluster.merge("Pod", name_of(pod), {"spec": {"nodeName": node}, "status": status})


async def test_replicas_are_kept_on_the_node_of_their_volume(world: World) -> None:
    await serving(world, replicas=2)
    affinity = pod_template(world)["spec"]["affinity"]["podAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    selected = term["labelSelector"]["matchLabels"]
    assert selected.items() <= pod_template(world)["metadata"]["labels"].items(), "else the first one had no place"
    assert not any(label.endswith("revision") for label in selected), "a new revision goes where the old one is"
    assert world.cluster.all("PodDisruptionBudget") == [], "it would only keep the node from being drained"
    await world.at_rest()


async def test_another_deployment_of_the_same_weights_goes_best_to_the_same_node(world: World) -> None:
    await serving(world, "a")
    await serving(world, "b")
    (preferred,) = pod_template(world, "b")["spec"]["affinity"]["podAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    selected = preferred["podAffinityTerm"]["labelSelector"]["matchLabels"]
    assert selected.items() <= labels_of(pod_template(world, "a")).items()


async def test_a_volume_of_many_nodes_ties_nobody(world: World) -> None:
    await serving(world, replicas=2, weights={"accessMode": "ReadWriteMany"})
    assert "affinity" not in pod_template(world)["spec"]
    assert len(world.cluster.all("PodDisruptionBudget")) == 1


async def test_what_runs_already_is_not_moved(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater_operator.render import pin

    current = pin.CURRENT_RENDER_VERSION
    monkeypatch.setattr(pin, "CURRENT_RENDER_VERSION", 4)
    await serving(world, replicas=2)
    before = pod_template(world)
    monkeypatch.setattr(pin, "CURRENT_RENDER_VERSION", current)
    await world.restart()
    await world.settle()
    assert pod_template(world) == before


async def test_a_replica_on_another_node_than_the_volume_is_told_of(world: World) -> None:
    await serving(world, replicas=2)
    there, apart = world.kube.pods()
    world.kube.loads = lambda pod: name_of(pod) == name_of(there)
    world.kube.step = lambda: None  # type: ignore[method-assign]
    move(world, apart, "b", containerStatuses=[], conditions=[{"type": "Ready", "status": "False"}])
    assert await world.reconcile() == 60, "it may just be starting"
    assert world.condition("Degraded")[0] == "False"
    world.clock.passed += 61
    await world.reconcile()
    assert world.condition("Degraded") == ("True", "VolumeReachesOneNode")
    assert world.condition("Ready") == ("False", "VolumeReachesOneNode")
    for words in (name_of(apart), "on node b", "ReadWriteMany", "weights-"):
        assert words in world.message("Degraded")


@pytest.mark.parametrize("said", [APART, "0/3 nodes are available: 3 node(s) had volume node affinity conflict."])
async def test_a_replica_that_finds_no_room_beside_the_others_is_told_of(world: World, said: str) -> None:
    await serving(world, replicas=2)
    _, apart = world.kube.pods()
    world.kube.step = lambda: None  # type: ignore[method-assign]
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    move(world, apart, "", containerStatuses=[], conditions=[unplaced])
    world.clock.passed += 61
    await world.reconcile()
    assert world.condition("Degraded") == ("True", "VolumeReachesOneNode")
    assert said in world.message("Degraded")


async def test_a_group_is_not_made_with_a_volume_that_others_made_for_one_node(world: World) -> None:
    await serving(world, "a")
    world.create("m", source=HUB, backend={"type": "vllm"}, parallelism={"tensor": 2, "nodes": 2},
                 weights={"accessMode": "ReadWriteMany"})  # fmt: skip
    await world.settle()
    assert world.condition("Degraded") == ("True", "Unsupported")
    assert "is ReadWriteOnce" in world.message("Degraded") and world.cluster.all("StatefulSet") == []


# The Job


async def job_of(world: World, **spec: Any) -> Manifest:
    world.create(source=HUB, **spec)
    await world.settle()
    (job,) = world.cluster.all("Job")
    pod: Manifest = job["spec"]["template"]["spec"]
    return pod


async def test_weights_are_fetched_where_the_engines_can_be(world: World) -> None:
    pod = await job_of(world, backend={"type": "vllm"})
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    preferred = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    keys = [each["preference"]["matchExpressions"][0]["key"] for each in preferred]
    assert {"nvidia.com/gpu.present", "cloud.google.com/gke-accelerator"} <= set(keys)
    assert "nvidia.com/gpu" not in str(pod["containers"]), "it would lie idle"


@pytest.mark.parametrize("spec", [{}, {"backend": {"type": "vllm"}, "weights": {"accessMode": "ReadWriteMany"}}])
async def test_otherwise_they_are_fetched_anywhere(world: World, spec: Any) -> None:
    pod = await job_of(world, **spec)
    assert "affinity" not in pod and "tolerations" not in pod


COPIED: Object = {"accessMode": "ReadOnlyMany"}


async def test_many_nodes_read_a_copy_where_the_class_offers_that(world: World) -> None:
    await serving(world, replicas=2, weights=COPIED)
    (filled, copy) = sorted(world.cluster.all("PersistentVolumeClaim"), key=lambda each: len(name_of(each)))
    assert filled["spec"]["accessModes"] == ["ReadWriteOnce"], "somebody has to write it"
    assert copy["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert copy["spec"]["dataSource"] == {"kind": "PersistentVolumeClaim", "name": name_of(filled)}
    assert copy["spec"]["resources"] == filled["spec"]["resources"]
    (volume,) = (each for each in pod_template(world)["spec"]["volumes"] if each["name"] == "weights")
    assert volume["persistentVolumeClaim"] == {"claimName": name_of(copy), "readOnly": True}
    assert "affinity" not in pod_template(world)["spec"], "any node can have it"
    assert world.condition("Ready") == ("True", "ReplicasReady")
    await world.at_rest()
    await world.reconciler.sweep()
    assert len(world.cluster.all("PersistentVolumeClaim")) == 2


async def test_there_is_no_copy_of_what_is_not_filled(world: World) -> None:
    world.create(source=HUB, weights=COPIED)
    await world.settle()
    assert len(world.cluster.all("PersistentVolumeClaim")) == 1
    assert world.condition("Ready") == ("False", "Downloading")


async def test_a_volume_that_is_there_stays_as_it_was_made(world: World) -> None:
    """Else the replicas of all who read it would begin anew."""
    await serving(world, weights={})
    before = pod_template(world)
    world.edit(weights=COPIED)
    await world.settle()
    assert pod_template(world) == before
    assert len(world.cluster.all("PersistentVolumeClaim")) == 1
