"""What happens to a ModelDeployment at its edges: orphans, strangers, what is just gone, what is turned on later."""

import asyncio
import contextlib

import pytest

from benchmarks.virtual_clock import run
from headwater_operator import render
from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Object, name_of
from tests.operator.world import World

HUB = "hf://owner/model"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def claim(world: World) -> Object:
    (found,) = world.cluster.all("PersistentVolumeClaim")
    return found


async def fetched(world: World, *names: str) -> None:
    await world.settle(*names)
    world.kube.finish(name_of(claim(world)))
    await world.settle(*names)


async def test_keep_turned_on_saves_the_volume(world: World) -> None:
    world.create(source=HUB, weights={"keep": False})
    await fetched(world)
    world.edit(weights={"keep": True})
    await world.settle()
    assert not claim(world)["metadata"].get("ownerReferences")


async def test_a_second_resource_that_keeps_saves_the_volume(world: World) -> None:
    world.create("a", source=HUB, weights={"keep": False})
    await fetched(world, "a")
    world.create("b", source=HUB)
    await world.settle("a", "b")
    world.delete("a")
    world.cluster.collect_garbage()
    assert "deletionTimestamp" not in claim(world)["metadata"]


def test_the_job_follows_the_claim_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, gateway_service=None)

    async def scenario() -> None:
        world.create(source=HUB)
        await world.controller.load()
        working = asyncio.create_task(world.controller.run())
        for _ in range(20):
            await asyncio.sleep(1)
            world.deliver()
        working.cancel()

    run(scenario())
    assert world.cluster.all("Job"), "20 s later the volume still waits for its Job"


async def test_an_invalid_spec_does_not_hide_what_serves(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    world.edit(loadTimeout="soon")
    await world.settle()
    assert world.condition("Degraded") == ("True", "InvalidSpec")
    assert world.status()["readyReplicas"] == 2


async def test_an_invalid_spec_is_what_ready_says(world: World) -> None:
    world.create(loadTimeout="soon")
    await world.settle()
    assert world.condition("Ready") == ("False", "InvalidSpec")


async def test_an_invalid_spec_is_not_settled(world: World) -> None:
    world.create(loadTimeout="soon")
    await world.settle()
    assert world.condition("Progressing")[1] != "Settled"


async def test_an_invalid_spec_keeps_the_memory_of_scaling(world: World) -> None:
    world.create(autoscaling={"min": 1, "max": 5})
    await world.settle()
    assert world.status()["autoscaling"]["desired"] == 1
    world.edit(loadTimeout="soon")
    await world.settle()
    assert world.status()["autoscaling"]["desired"] == 1


async def test_autoscaling_of_groups_begins_at_what_runs(world: World) -> None:
    world.create(replicas=3, backend={"type": "vllm"}, parallelism={"tensor": 2, "nodes": 2})
    await world.settle()
    assert len(world.cluster.all("StatefulSet")) == 3
    world.edit(replicas=None, autoscaling={"min": 1, "max": 5})
    await world.settle()
    assert len(world.cluster.all("StatefulSet")) == 3


async def test_a_pod_that_has_just_gone_is_no_refusal(world: World) -> None:
    world.create(replicas=3)
    await world.settle()
    world.edit(replicas=2)
    world.deliver()
    for pod in world.kube.pods()[:1]:
        world.cluster.remove(pod)  # the watch has not told yet
    world.cluster.news, late = [], world.cluster.news
    with contextlib.suppress(ApiError):  # for the queue to try again
        await world.reconcile()
    world.cluster.news = late + world.cluster.news
    assert world.condition("Degraded")[1] != "Refused"
    await world.settle()
    assert world.condition("Degraded")[0] == "False"


async def test_an_orphaned_child_is_taken_in_again(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    uid = world.resource()["metadata"]["uid"]
    for kind, name in (("Deployment", "m"), ("Service", "m-engine"), ("PodDisruptionBudget", "m")):
        world.cluster.merge(kind, name, {"metadata": {"ownerReferences": None}})
    world.cluster.remove(world.resource())  # kubectl delete --cascade=orphan
    world.create(replicas=2)
    assert world.resource()["metadata"]["uid"] != uid
    await world.settle()
    assert world.condition("Ready")[0] == "True"


async def test_a_child_that_lost_its_owner_gets_it_back(world: World) -> None:
    world.create()
    await world.settle()
    world.cluster.merge("Deployment", "m", {"metadata": {"ownerReferences": None}})
    await world.settle()
    assert world.child("Deployment")["metadata"].get("ownerReferences")


async def test_a_child_that_lost_its_label_gets_it_back(world: World) -> None:
    world.create()
    await world.settle()
    world.cluster.merge("Service", "m-engine", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}})
    await world.settle()
    assert world.child("Service", "m-engine")["metadata"]["labels"].get("app.kubernetes.io/managed-by") == "headwater"


async def test_a_label_of_the_template_does_not_hide_the_pods(world: World) -> None:
    world.create(template={"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}})
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_paused_rollout_does_not_stop_the_healing_of_groups(world: World) -> None:
    world.create(replicas=1, backend={"type": "vllm"}, parallelism={"tensor": 2, "nodes": 2})
    await world.settle()
    before = {pod["metadata"]["uid"] for pod in world.kube.pods()}
    world.edit(rollout={"paused": True}, context={"maxTokens": 64})
    await world.settle()
    world.kube.restart_container(name_of(world.kube.pods()[0]))
    await world.settle()
    assert not before & {pod["metadata"]["uid"] for pod in world.kube.pods()}


async def test_fetching_new_weights_does_not_stop_the_scaling_of_the_old(world: World) -> None:
    world.create(source=HUB, autoscaling={"min": 1, "max": 5, "inFlightPerReplica": 1})
    await fetched(world)
    world.edit(model={"source": "hf://owner/larger"})
    await world.settle()
    for _ in range(40):
        world.clock.passed += 2
        world.report(3)
    await world.settle()
    assert world.child("Deployment")["spec"]["replicas"] == 3


async def test_a_draining_pod_is_no_lack_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=4)
    world.create(replicas=3)
    await world.settle()
    world.kube.ends = lambda pod: False  # streams go on for a minute
    world.edit(context={"maxTokens": 64})
    await world.settle()
    world.clock.passed += 30
    await world.settle()
    ready = [pod for pod in world.kube.pods() if pod["status"].get("podIP")]
    assert len(ready) == 3, "an old replica was taken although the place of another is about to be free"


async def test_a_draining_group_is_no_lack_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, slots=6)
    world.create(replicas=2, backend={"type": "vllm"}, parallelism={"tensor": 2, "nodes": 2})
    await world.settle()
    world.kube.ends = lambda pod: False
    world.edit(context={"maxTokens": 64})
    await world.settle()
    world.clock.passed += 30
    await world.settle()
    assert world.status()["readyReplicas"] == 2


async def test_routable_is_not_known_while_a_router_is_silent(world: World) -> None:
    world.create()
    await world.settle()
    world.report(ready=1, failures={"http://router-2": "no answer"})
    await world.settle()
    assert world.condition("Routable")[0] == "Unknown"


async def test_a_pin_that_was_taken_away_is_put_back(world: World) -> None:
    world.create()
    await world.settle()
    world.cluster.merge("Deployment", "m", {"metadata": {"annotations": {render.PIN_ANNOTATION: None}}})
    await world.settle()
    assert render.PIN_ANNOTATION in world.child("Deployment")["metadata"]["annotations"]


async def test_a_resource_made_anew_begins_anew(world: World) -> None:
    world.create(autoscaling={"min": 1, "max": 9, "inFlightPerReplica": 1})
    await world.settle()
    for _ in range(40):
        world.clock.passed += 2
        world.report(7)
    await world.settle()
    world.delete()
    world.cluster.collect_garbage()
    world.cluster.collect_garbage()
    world.create(autoscaling={"min": 1, "max": 9, "inFlightPerReplica": 1})
    await world.reconcile()
    assert world.child("Deployment")["spec"]["replicas"] == 1


async def test_an_old_pod_of_tgi_has_no_new_adapter(world: World) -> None:
    tgi = {"type": "tgi", "image": "registry/tgi:3"}
    world.create(backend=tgi, source=HUB, weights={"cached": False})
    await world.settle()
    assert world.condition("Ready")[0] == "True"
    old = name_of(world.kube.pods()[0])
    world.kube.loads = lambda pod: name_of(pod) == old
    world.edit(adapters=[{"name": "owner/sql", "source": "hf://owner/sql"}])
    await world.settle()
    assert world.condition("Progressing")[0] == "True"
    assert not any(each["loaded"] for each in world.status().get("adapters", []))


async def test_the_warning_of_a_missing_budget_comes_once(world: World) -> None:
    world.create(replicas=0, backend={"type": "vllm"}, parallelism={"tensor": 2, "nodes": 2})
    for _ in range(5):
        await world.reconcile()
    assert world.events().count(("Warning", "NoDisruptionBudget")) <= 1


async def test_the_warning_of_a_missing_budget_comes_once_where_a_name_is_taken(world: World) -> None:
    world.cluster.add(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "m", "namespace": "default"},
            "spec": {"template": {"spec": {"containers": []}}},
        }
    )
    world.create()
    for _ in range(5):
        await world.reconcile()
    assert world.events().count(("Warning", "NoDisruptionBudget")) <= 1


async def test_an_error_of_a_scaled_child_that_is_gone(world: World) -> None:
    """Applying replicas alone to a Deployment that is gone would make one without a template."""
    world.create(autoscaling={"min": 1, "max": 5, "inFlightPerReplica": 1})
    await world.settle()
    for _ in range(40):
        world.clock.passed += 2
        world.report(3)
    world.deliver()
    world.cluster.remove(world.child("Deployment"))
    late, world.cluster.news = world.cluster.news, []
    with contextlib.suppress(ApiError):
        await world.reconcile()
    world.cluster.news = late + world.cluster.news
    assert world.condition("Degraded")[1] != "Refused"
    await world.settle()
    assert world.replicas() == 3


async def test_a_restart_does_not_unlearn_what_is_routable(world: World) -> None:
    world.create()
    await world.settle()
    world.report(ready=1)
    await world.settle()
    await world.restart()
    await world.settle()
    assert world.cluster.writes() == []
