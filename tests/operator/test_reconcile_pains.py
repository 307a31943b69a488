"""What users of other operators suffer from, and ours must not do: rollouts, upgrades, deletion, names.

The numbers are those of the list in docs/operator.md's sources; 6, 7 and 14 are in test_reconcile_replicas, 9 and 10 in
test_prerequisites, 12 in test_adapters, 8 and 13 in test_render_pods.
"""

import pytest

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import Object, labels_of, name_of, uid_of
from headwater_operator.reconcile.rollout import PATIENCE
from headwater_operator.render import PIN_ANNOTATION, Context, Manifest, pin, versions
from tests.operator.world import World

GROUPS: Object = {"backend": {"type": "vllm"}, "parallelism": {"tensor": 2, "nodes": 2}}
CHANGE: Object = {"context": {"maxTokens": 64}}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def ready(world: World) -> set[str]:
    """Pods that serve."""
    conditions = {uid_of(pod): pod["status"].get("conditions", []) for pod in world.kube.pods()}
    return {uid for uid, found in conditions.items() if {"type": "Ready", "status": "True"} in found}


def revisions(world: World) -> set[str]:
    return {labels_of(pod)["headwater.dev/revision"] for pod in world.kube.pods()}


def next_version(deployment: ModelDeployment, context: Context, group: int | None) -> Manifest:
    """A renderer that makes pods otherwise."""
    made = versions.RENDERERS[1](deployment, context, group)
    made["metadata"]["labels"]["v"] = "next"
    return made


def templates(world: World) -> list[Object]:
    return [each["spec"]["template"] for kind in ("Deployment", "StatefulSet") for each in world.cluster.all(kind)]


async def test_pain_01_a_rollout_without_room_for_a_surge_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=2)
    world.create(replicas=2)
    await world.settle()
    old = ready(world)
    world.edit(**CHANGE)
    await world.settle()
    assert ready(world) == old, "nothing goes before it is known that there is no room"
    assert world.condition("Progressing") == ("True", "Surge")
    again = await world.reconcile()
    assert again is not None and 0 < again <= PATIENCE
    world.clock.passed += again
    await world.reconcile()
    assert world.condition("Progressing") == ("True", "NoRoomForSurge")
    await world.settle()
    assert len(ready(world)) == 2 and not ready(world) & old
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_pain_01_an_old_pod_that_still_answers_is_no_lack_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=4)
    world.create(replicas=3)
    await world.settle()
    world.kube.ends = lambda pod: False
    world.edit(**CHANGE)
    await world.settle()
    world.clock.passed += 30
    await world.settle()
    assert len(ready(world)) == 3, "its place is about to be free, so no other is taken"
    world.kube.ends = lambda pod: True
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_pain_01_a_single_replica_without_room_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=1)
    world.create()
    await world.settle()
    world.edit(**CHANGE)
    await world.settle()
    world.clock.passed += PATIENCE
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_pain_01_groups_without_room_for_a_surge_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=4)
    world.create(replicas=2, **GROUPS)
    await world.settle()
    old = ready(world)
    world.edit(**CHANGE)
    await world.settle()
    assert ready(world) == old
    for _ in range(2):
        world.clock.passed += PATIENCE
        await world.settle()
    assert len(ready(world)) == 4 and not ready(world) & old
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_pain_01_once_the_rollout_is_over_the_next_one_surges_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=1)
    world.create()
    await world.settle()
    world.edit(**CHANGE)
    await world.settle()
    world.clock.passed += PATIENCE
    await world.settle()
    pace = world.child("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert pace == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("kind", [{}, GROUPS], ids=["pods", "groups"])
async def test_pain_02_a_new_operator_restarts_no_engine(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: Object
) -> None:
    world.create(replicas=2, **kind)
    await world.settle()
    before, engines = templates(world), ready(world)
    version = pin.CURRENT_RENDER_VERSION
    monkeypatch.setitem(versions.RENDERERS, version + 1, next_version)
    monkeypatch.setattr(pin, "CURRENT_RENDER_VERSION", version + 1)
    await world.restart(engine_image="engine:2")
    await world.settle()
    assert templates(world) == before and ready(world) == engines
    assert world.cluster.writes() == []
    assert world.status()["renderVersion"] == version

    world.edit(replicas=3, routing={"weight": 1}, rollout={"strategy": "Surge"})
    await world.settle()
    assert engines <= ready(world), "what does not shape pods adopts nothing"
    assert world.status()["renderVersion"] == version

    world.edit(**CHANGE)
    for _ in range(6):
        await world.settle()
        world.clock.passed += 10  # for which a new group must have been ready
    assert world.status()["renderVersion"] == version + 1
    assert all(template["metadata"]["labels"]["v"] == "next" for template in templates(world))


async def test_pain_02_the_new_image_comes_with_the_next_change(world: World) -> None:
    world.create()
    await world.settle()
    await world.restart(engine_image="engine:2")
    world.edit(**CHANGE)
    await world.settle()
    assert [pod["spec"]["containers"][0]["image"] for pod in world.kube.pods()] == ["engine:2"]


async def test_pain_03_old_pods_that_serve_do_not_make_it_ready(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    old = ready(world)
    world.kube.loads = lambda pod: uid_of(pod) in old
    world.edit(**CHANGE)
    await world.settle()
    assert world.condition("Ready") == ("False", "Loading")
    assert world.condition("ModelLoaded") == ("True", "Loaded"), "they serve all the same"
    assert world.status()["readyReplicas"] == 2
    assert world.status()["updatedReplicas"] == 1
    assert world.status()["observedGeneration"] == 2


async def test_pain_03_a_pod_that_is_ready_no_more_shows(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    sick = name_of(world.kube.pods()[0])
    world.kube.loads = lambda pod: name_of(pod) != sick
    await world.settle()
    assert world.condition("Ready") == ("False", "Loading")
    assert world.status()["readyReplicas"] == 1


@pytest.mark.parametrize("kind", [{}, GROUPS], ids=["pods", "groups"])
async def test_pain_04_a_revert_in_the_middle_keeps_what_serves(world: World, kind: Object) -> None:
    world.create(replicas=2, **kind)
    await world.settle()
    old = ready(world)
    world.kube.loads = lambda pod: uid_of(pod) in old
    world.edit(**CHANGE)
    await world.settle()
    assert len(revisions(world)) == 2
    world.edit(context=None)
    await world.settle()
    assert ready(world) == old == {uid_of(pod) for pod in world.kube.pods()}
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_pain_05_what_annotations_of_the_resource_are_lost_does_not_matter(world: World) -> None:
    manifest = world.create(replicas=2)
    await world.settle()
    engines = ready(world)
    assert "annotations" not in world.resource()["metadata"], "the truth is on the children"
    bare = {"name": "m", "namespace": "default"}
    world.cluster.write_over({**manifest, "metadata": bare})
    await world.restart(engine_image="engine:2")
    await world.settle()
    assert ready(world) == engines
    assert PIN_ANNOTATION in world.child("Deployment")["metadata"]["annotations"]


@pytest.mark.parametrize("kind", [{}, GROUPS], ids=["pods", "groups"])
async def test_pain_11_deleting_needs_no_operator(world: World, kind: Object) -> None:
    world.create(replicas=2, source="hf://owner/model", weights={"accessMode": "ReadWriteMany"}, **kind)
    await world.settle()
    world.kube.finish(name_of(world.cluster.all("Job")[0]))
    await world.settle()
    assert len(ready(world)) == 2 * (2 if kind else 1)
    assert not any("finalizers" in each["metadata"] for each in world.told)
    world.delete()
    for _ in range(5):
        world.kube.step()
    left = {each["kind"] for each in world.cluster.objects.values()} - {"Event"}
    assert left == {"PersistentVolumeClaim", "Job"}, "the weights are kept, and the Job goes with them"


async def test_pain_11_a_resource_that_is_about_to_go_is_left_alone(world: World) -> None:
    world.create()
    await world.settle()
    world.cluster.merge("ModelDeployment", "m", {"metadata": {"deletionTimestamp": "2026-11-02T12:00:00Z"}})
    world.cluster.remove(world.child("Service", "m-engine"))
    world.cluster.calls.clear()
    await world.reconcile()
    assert world.cluster.calls == []


LONGEST = "a" + "-b" * 22
TENSORRT = {"type": "tensorrt-llm", "image": "trt:1", "args": ["--backend", "tensorrt"]}


@pytest.mark.parametrize("kind", [{}, GROUPS], ids=["pods", "groups"])
async def test_pain_15_the_longest_name_there_may_be_is_served(world: World, kind: Object) -> None:
    world.create(LONGEST, replicas=2, **kind)
    await world.settle(LONGEST)
    assert world.condition("Ready", LONGEST) == ("True", "ReplicasReady")


async def test_pain_15_an_engine_of_the_longest_name_is_built(world: World) -> None:
    world.create(LONGEST, backend=TENSORRT, source="hf://owner/model")
    await world.settle(LONGEST)
    world.kube.finish(name_of(world.cluster.all("Job")[0]))
    await world.settle(LONGEST)
    builds = [name_of(job) for job in world.cluster.all("Job") if name_of(job).startswith(LONGEST)]
    assert len(builds) == 1
    world.kube.finish(builds[0])
    await world.settle(LONGEST)
    assert world.condition("Ready", LONGEST) == ("True", "ReplicasReady")


async def test_pain_15_long_names_that_begin_alike_do_not_meet(world: World) -> None:
    names = LONGEST[:-1] + "x", LONGEST[:-1] + "y"
    for name in names:
        world.create(name, **GROUPS)
    await world.settle(*names)
    for name in names:
        assert world.condition("Ready", name) == ("True", "ReplicasReady")
    assert len(world.cluster.all("StatefulSet")) == 2
