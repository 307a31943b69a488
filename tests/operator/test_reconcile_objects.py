"""What there should be is made, put right and taken away; what is not ours is left alone; rest costs nothing."""

import pytest

from headwater_operator.cluster.kinds import Object, name_of, uid_of
from tests.operator.world import World

RULE: Object = {"min": 1, "max": 3, "inFlightPerReplica": 1}
GROUPS: Object = {"backend": {"type": "vllm"}, "parallelism": {"tensor": 2, "nodes": 2}}
ADAPTERS: Object = {"backend": {"type": "vllm"}, "adapters": [{"name": "sql", "source": "hf://owner/sql"}]}
AMOUNTS: Object = {"resources": {"limits": {"cpu": 4, "memory": "8Gi"}}}

KINDS: list[Object] = [
    {},
    {"replicas": 2},
    {"replicas": 0},
    {"replicas": 2, "rollout": {"paused": True}},
    {"autoscaling": RULE},
    {"autoscaling": {**RULE, "min": 0}},
    {"replicas": 2, **GROUPS},
    ADAPTERS,
    AMOUNTS,
]
NAMES = ["one", "two", "none", "paused", "autoscaled", "asleep", "groups", "adapters", "amounts"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def stranger(kind: str, name: str, spec: Object | None = None) -> Object:
    """What somebody made for themselves."""
    versions = {"Deployment": "apps/v1", "PodDisruptionBudget": "policy/v1"}
    template = {"template": {"metadata": {"labels": {"app": "theirs"}}, "spec": {"containers": []}}}
    return {
        "apiVersion": versions.get(kind, "v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "theirs"}},
        "spec": spec
        or {"selector": {}, "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}, **template},
    }


# At rest


@pytest.mark.parametrize("spec", KINDS, ids=NAMES)
async def test_a_resource_at_rest_costs_no_call(world: World, spec: Object) -> None:
    world.create(**spec)
    await world.settle()
    for _ in range(3):
        await world.at_rest()


@pytest.mark.parametrize("spec", KINDS, ids=NAMES)
async def test_a_new_operator_changes_nothing(world: World, spec: Object) -> None:
    world.create(**spec)
    await world.settle()
    before = {place: each["metadata"]["resourceVersion"] for place, each in world.cluster.objects.items()}
    await world.restart()
    await world.settle()
    after = {place: each["metadata"]["resourceVersion"] for place, each in world.cluster.objects.items()}
    assert after == before


@pytest.mark.parametrize("spec", [each for each in KINDS if each is not AMOUNTS])
async def test_a_new_operator_writes_nothing(world: World, spec: Object) -> None:
    world.create(**spec)
    await world.settle()
    await world.restart()
    await world.settle()
    assert world.cluster.writes() == []


async def test_what_the_api_server_writes_otherwise_is_applied_once(world: World) -> None:
    """4 CPUs come back as "4"."""
    world.create(**AMOUNTS)
    await world.settle()
    await world.restart()
    await world.settle()
    assert [call.kind for call in world.cluster.writes()] == ["Deployment"]


# Put right


@pytest.mark.parametrize("kind, name", [("Deployment", "m"), ("Service", "m-engine"), ("PodDisruptionBudget", "m")])
async def test_a_child_that_was_deleted_comes_back(world: World, kind: str, name: str) -> None:
    world.create(replicas=2)
    await world.settle()
    gone = uid_of(world.child(kind, name))
    world.cluster.remove(world.child(kind, name))
    await world.settle()
    assert uid_of(world.child(kind, name)) != gone
    assert world.condition("Ready")[0] == "True"
    await world.at_rest()


async def test_a_deployment_that_was_deleted_while_autoscaled_comes_back_as_large(world: World) -> None:
    world.create(autoscaling=RULE)
    await world.settle()
    for _ in range(40):
        world.clock.passed += 2
        world.report(3)
    await world.settle()
    world.cluster.remove(world.child("Deployment"))
    await world.settle()
    assert world.replicas() == 3


@pytest.mark.parametrize(
    "kind, name, drift",
    [
        ("Deployment", "m", {"spec": {"replicas": 7}}),
        ("Deployment", "m", {"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 2}}}}),
        ("Deployment", "m", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}),
        ("Deployment", "m", {"spec": {"paused": True}}),
        ("Deployment", "m", {"metadata": {"annotations": {"headwater.dev/spec-hash": None}}}),
        ("Service", "m-engine", {"spec": {"ports": []}}),
        ("Service", "m-engine", {"spec": {"selector": {"headwater.dev/deployment": "other"}}}),
        ("PodDisruptionBudget", "m", {"spec": {"maxUnavailable": 5}}),
    ],
)
async def test_drift_is_put_right(world: World, kind: str, name: str, drift: Object) -> None:
    world.create(replicas=2)
    await world.settle()
    before = world.child(kind, name)
    metadata, spec = before["metadata"], before["spec"]
    world.cluster.merge(kind, name, drift)
    await world.settle()
    after = world.child(kind, name)
    assert after["spec"] == spec
    assert after["metadata"].get("annotations") == metadata.get("annotations")
    await world.at_rest()


async def test_what_others_add_stays(world: World) -> None:
    world.create()
    await world.settle()
    world.cluster.merge("Deployment", "m", {"metadata": {"annotations": {"team": "search"}}})
    world.edit(context={"maxTokens": 64})
    await world.settle()
    assert world.child("Deployment")["metadata"]["annotations"]["team"] == "search"


# No longer asked for


async def test_a_budget_goes_with_the_second_replica(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    assert world.cluster.all("PodDisruptionBudget")
    world.edit(replicas=1)
    await world.settle()
    assert world.cluster.all("PodDisruptionBudget") == []
    world.edit(replicas=3)
    await world.settle()
    assert world.cluster.all("PodDisruptionBudget")


async def test_what_a_field_no_longer_says_is_taken_away(world: World) -> None:
    world.create(template={"spec": {"nodeSelector": {"gpu": "h100"}}})
    await world.settle()
    assert "nodeSelector" in world.child("Deployment")["spec"]["template"]["spec"]
    world.edit(template=None)
    await world.settle()
    assert "nodeSelector" not in world.child("Deployment")["spec"]["template"]["spec"]


# Not ours


@pytest.mark.parametrize("kind, name", [("Deployment", "m"), ("Service", "m-engine"), ("PodDisruptionBudget", "m")])
async def test_what_has_the_name_and_is_not_ours_is_never_touched(world: World, kind: str, name: str) -> None:
    theirs = world.cluster.add(stranger(kind, name))
    world.create(replicas=2)
    for _ in range(3):
        await world.reconcile()
    assert world.child(kind, name) == theirs
    assert world.condition("Degraded") == ("True", "NameTaken")
    assert world.condition("Ready") == ("False", "NameTaken")
    assert kind in world.message("Degraded") and name in world.message("Degraded")
    assert world.events().count(("Warning", "NameTaken")) == 1

    world.cluster.remove(world.child(kind, name))
    assert await world.reconcile() is None, "the name is free, and so it goes on"
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_name_that_is_taken_is_looked_at_again(world: World) -> None:
    world.cluster.add(stranger("Deployment", "m"))
    world.create()
    assert await world.reconcile() == 60, "nobody tells when what is not ours goes"


async def test_what_is_not_ours_is_not_deleted_with_a_budget_that_is_not_needed(world: World) -> None:
    world.create(replicas=1)
    await world.settle()
    ours = {"headwater.dev/deployment": "m", "app.kubernetes.io/managed-by": "headwater"}
    theirs = stranger("PodDisruptionBudget", "mine", {"maxUnavailable": 1})
    theirs["metadata"]["labels"] = ours
    world.cluster.add(theirs)
    await world.settle()
    assert world.child("PodDisruptionBudget", "mine"), "it has our labels, but not our resource as its owner"


async def test_a_volume_that_is_not_ours_is_not_written_to(world: World) -> None:
    world.create("other", source="hf://owner/model")
    await world.settle("other")
    name = name_of(world.cluster.all("PersistentVolumeClaim")[0])
    fresh = World(pytest.MonkeyPatch())
    theirs = fresh.cluster.add(stranger("PersistentVolumeClaim", name, {"accessModes": ["ReadWriteOnce"]}))
    fresh.create(source="hf://owner/model")
    await fresh.reconcile()
    assert fresh.child("PersistentVolumeClaim", name) == theirs
    assert fresh.condition("Degraded") == ("True", "NameTaken")


async def test_children_of_an_earlier_resource_are_waited_for(world: World) -> None:
    world.create()
    await world.settle()
    old = uid_of(world.child("Deployment"))
    world.delete()
    world.create()
    assert await world.reconcile() == 1
    assert uid_of(world.child("Deployment")) == old, "it is about to go; adopting it would let it go later"
    assert world.condition("Ready") == ("False", "WaitingForDeletion")
    await world.settle()
    assert uid_of(world.child("Deployment")) != old
    assert world.condition("Ready") == ("True", "ReplicasReady")


# Paused


async def test_a_paused_rollout_changes_no_pod(world: World) -> None:
    world.create(replicas=2, rollout={"paused": False})
    await world.settle()
    engines = {uid_of(pod) for pod in world.kube.pods()}
    world.edit(context={"maxTokens": 64}, rollout={"paused": True})
    await world.settle()
    assert {uid_of(pod) for pod in world.kube.pods()} == engines
    assert world.condition("Progressing") == ("False", "Paused")
    assert world.condition("Ready")[0] == "False", "the current revision does not run"
    world.edit(rollout=None)
    await world.settle()
    assert not {uid_of(pod) for pod in world.kube.pods()} & engines
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_paused_resource_can_still_be_scaled(world: World) -> None:
    world.create(replicas=2, rollout={"paused": True})
    await world.settle()
    world.edit(rollout={"paused": False})
    await world.settle()
    world.edit(replicas=4, rollout={"paused": True})
    await world.settle()
    assert len(world.kube.pods()) == 4


async def test_a_paused_rollout_of_groups_changes_no_pod(world: World) -> None:
    world.create(replicas=2, **GROUPS)
    await world.settle()
    engines = {uid_of(pod) for pod in world.kube.pods()}
    world.edit(context={"maxTokens": 64}, rollout={"paused": True})
    await world.settle()
    assert {uid_of(pod) for pod in world.kube.pods()} == engines
    world.edit(rollout=None)
    for _ in range(6):
        await world.settle()
        world.clock.passed += 10  # for which a new group must have been ready
    assert not {uid_of(pod) for pod in world.kube.pods()} & engines
