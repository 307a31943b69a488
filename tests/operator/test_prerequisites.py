"""What has to be there before pods: weights, shared by all that want them, and engines that are built."""

import json

import pytest
from pydantic import ValidationError

from headwater_operator.cluster.kinds import Object, labels_of, name_of, uid_of
from headwater_operator.config import OperatorSettings
from tests.operator.world import World

HUB = "hf://owner/model"
TENSORRT: Object = {"type": "tensorrt-llm", "image": "trt:1", "args": ["--backend", "tensorrt"]}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def claim(world: World) -> Object:
    (found,) = (each for each in world.cluster.all("PersistentVolumeClaim") if name_of(each).startswith("weights-"))
    return found


def jobs(world: World, begin: str = "weights-") -> list[str]:
    return [name_of(job) for job in world.cluster.all("Job") if name_of(job).startswith(begin)]


async def fetched(world: World, *names: str) -> None:
    await world.settle(*names)
    world.kube.finish(jobs(world)[0])
    await world.settle(*names)


# Weights


async def test_no_pod_starts_before_the_weights_are_there(world: World) -> None:
    world.create(source=HUB, replicas=3)
    await world.settle()
    assert world.cluster.all("Deployment") == [] and len(jobs(world)) == 1
    assert world.condition("Ready") == ("False", "Downloading")
    assert world.condition("Progressing") == ("True", "Downloading")
    assert world.status()["phase"] == "Downloading"
    assert world.status()["weights"]["phase"] == "Filling"
    await world.at_rest()
    world.kube.finish(jobs(world)[0])
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")
    assert world.status()["weights"] == {"phase": "Filled", "claim": name_of(claim(world))}
    await world.at_rest()


async def fetching(world: World) -> None:
    """The Job has a pod that runs."""
    world.create(source=HUB)
    await world.settle()
    job = world.child("Job", jobs(world)[0])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name_of(job), "uid": uid_of(job), "controller": True}
    metadata = {"name": "fetch", "namespace": "default", "labels": labels_of(job), "ownerReferences": [owner]}
    world.cluster.add({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}})
    world.cluster.merge("Pod", "fetch", {"status": {"phase": "Running", "podIP": "10.0.0.9"}})


async def test_the_status_says_how_far_the_weights_are(world: World) -> None:
    await fetching(world)
    said = {"bytes": 15 * 2**30, "there": 1, "percent": 43, "bytes_per_second": 200 * 2**20, "seconds_left": 44}
    world.fetching = json.dumps(said).encode()
    assert await world.reconcile() == 15
    told = world.status()["weights"]
    assert told["progress"] == {"percent": 43, "bytes": 16106127360, "secondsLeft": 44}
    assert told["message"] == "fetching hf://owner/model@main: 43% of 15.0 GiB, 200 MiB/s, 44 s left"
    assert told["message"] in world.message("Ready")
    world.fetching = json.dumps(said | {"percent": 44}).encode()
    await world.reconcile()
    assert world.status()["weights"]["progress"]["percent"] == 43, "it is asked every 15 seconds"
    world.clock.passed += 15
    await world.reconcile()
    assert world.status()["weights"]["progress"]["percent"] == 44


@pytest.mark.parametrize(
    "said", [b"", b"{}", b"<html>", b'{"bytes": 1, "percent": 9999999999, "bytes_per_second": 0, "seconds_left": null}']
)
async def test_a_fetcher_that_says_nothing_useful_is_believed_nothing(world: World, said: bytes) -> None:
    await fetching(world)
    world.fetching = said
    await world.reconcile()
    told = world.status()["weights"]
    assert "progress" not in told and told["message"] == "fetching hf://owner/model@main"


async def test_pain_09_one_source_is_fetched_once_for_all(world: World) -> None:
    world.create("a", source=HUB, replicas=3)
    world.create("b", source=HUB, replicas=2)
    await fetched(world, "a", "b")
    assert len(jobs(world)) == 1 and len(world.cluster.all("PersistentVolumeClaim")) == 1
    made = [call for call in world.cluster.writes() if call == ("apply", "Job", jobs(world)[0])]
    assert len(made) == 1
    assert world.condition("Ready", "a") == world.condition("Ready", "b") == ("True", "ReplicasReady")
    await world.at_rest("a", "b")


async def test_pain_09_the_next_one_fetches_nothing(world: World) -> None:
    world.create("a", source=HUB)
    await fetched(world, "a")
    world.cluster.remove(world.child("Job", jobs(world)[0]))  # Kubernetes takes it away after a while
    world.create("b", source=HUB)
    await world.settle("a", "b")
    assert jobs(world) == []
    assert world.condition("Ready", "b") == ("True", "ReplicasReady")


async def test_pain_10_the_volume_outlives_the_resource(world: World) -> None:
    world.create(source=HUB)
    await fetched(world)
    volume = uid_of(claim(world))
    world.delete()
    for _ in range(5):
        world.kube.step()
    world.create(source=HUB)
    await world.settle()
    assert uid_of(claim(world)) == volume
    assert world.condition("Ready") == ("True", "ReplicasReady"), "and nothing was fetched again"


async def test_pain_10_one_that_is_not_to_be_kept_goes(world: World) -> None:
    world.create(source=HUB, weights={"keep": False})
    await fetched(world)
    world.delete()
    for _ in range(5):
        world.kube.step()
    assert world.cluster.all("PersistentVolumeClaim") == [] and world.cluster.all("Job") == []


async def test_pain_10_a_shared_one_goes_with_the_last(world: World) -> None:
    world.create("a", source=HUB, weights={"keep": False})
    world.create("b", source=HUB, weights={"keep": False})
    await fetched(world, "a", "b")
    world.delete("a")
    for _ in range(5):
        world.kube.step()
    assert "deletionTimestamp" not in claim(world)["metadata"]
    world.delete("b")
    for _ in range(5):
        world.kube.step()
    assert world.cluster.all("PersistentVolumeClaim") == []


async def test_weights_that_cannot_be_fetched_are_a_problem(world: World) -> None:
    world.create(source=HUB)
    await world.settle()
    world.kube.finish(jobs(world)[0], "Failed", reason="BackoffLimitExceeded", message="it has failed")
    await world.settle()
    assert world.condition("Degraded") == ("True", "WeightsFailed")
    assert world.condition("Ready") == ("False", "WeightsFailed")
    assert world.status()["phase"] == "Failed"
    assert world.cluster.all("Deployment") == []
    await world.at_rest()
    world.cluster.end(world.child("Job", jobs(world)[0]))
    await fetched(world)
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_what_runs_goes_on_while_other_weights_are_fetched(world: World) -> None:
    world.create(source=HUB, replicas=2)
    await fetched(world)
    engines = {uid_of(pod) for pod in world.kube.pods()}
    world.edit(model={"source": "hf://owner/larger"})
    await world.settle()
    assert {uid_of(pod) for pod in world.kube.pods()} == engines
    assert world.condition("Ready") == ("False", "Downloading")
    assert world.condition("ModelLoaded")[0] == "True" and world.status()["readyReplicas"] == 2
    for job in jobs(world):
        world.kube.finish(job)
    await world.settle()
    assert not {uid_of(pod) for pod in world.kube.pods()} & engines
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_volume_of_one_node_cannot_serve_groups(world: World) -> None:
    world.create(source=HUB, backend={"type": "vllm"}, parallelism={"tensor": 2, "nodes": 2})
    await world.settle()
    assert world.condition("Degraded") == ("True", "Unsupported")
    assert "spec.weights.accessMode" in world.message("Degraded")
    assert world.cluster.all("PersistentVolumeClaim") == []


async def test_pods_of_the_job_do_not_count_as_replicas(world: World) -> None:
    world.create(source=HUB)
    await world.settle()
    job = world.child("Job", jobs(world)[0])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name_of(job), "uid": uid_of(job)}
    labels = labels_of(job) | {"headwater.dev/deployment": "m"}
    metadata = {"name": "fetching", "namespace": "default", "labels": labels, "ownerReferences": [owner]}
    world.cluster.add({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {}})
    await world.settle()
    assert world.status()["replicas"] == 0 and world.status()["readyReplicas"] == 0


# Engines


async def test_an_engine_is_built_after_the_weights_and_before_the_pods(world: World) -> None:
    world.create(source=HUB, backend=TENSORRT)
    await world.settle()
    assert jobs(world, "m-build-") == []
    await fetched(world)
    (build,) = jobs(world, "m-build-")
    assert world.cluster.all("Deployment") == []
    assert world.condition("Ready") == ("False", "Building")
    assert build in world.message("Progressing")
    await world.at_rest()
    world.kube.finish(build)
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")
    volumes = world.kube.pods()[0]["spec"]["volumes"]
    claims = {each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each}
    assert claims == {name_of(claim(world)), build}
    await world.at_rest()


async def test_an_engine_that_cannot_be_built_is_a_problem_until_its_job_is_deleted(world: World) -> None:
    world.create(source=HUB, backend=TENSORRT)
    await fetched(world)
    (build,) = jobs(world, "m-build-")
    world.kube.finish(build, "Failed")
    await world.settle()
    assert world.condition("Degraded") == ("True", "BuildFailed")
    assert build in world.message("Degraded")
    world.cluster.end(world.child("Job", build))
    await world.settle()
    assert world.condition("Ready") == ("False", "Building")


async def test_what_does_not_shape_the_engine_builds_none(world: World) -> None:
    world.create(source=HUB, backend=TENSORRT)
    await fetched(world)
    world.kube.finish(jobs(world, "m-build-")[0])
    await world.settle()
    world.edit(drainTimeout="1m")
    await world.settle()
    assert len(jobs(world, "m-build-")) == 1
    assert world.condition("Ready") == ("True", "ReplicasReady")
    world.edit(context={"maxTokens": 4096})
    await world.settle()
    assert len(jobs(world, "m-build-")) == 2
    assert world.condition("Ready") == ("False", "Building") and world.status()["readyReplicas"] == 1


async def test_what_was_made_for_a_build_is_not_changed_by_a_new_operator(world: World) -> None:
    world.create(source=HUB, backend=TENSORRT)
    await fetched(world)
    world.kube.finish(jobs(world, "m-build-")[0])
    await world.settle()
    await world.restart(weights_size="200Gi", weights_storage_class="faster")
    await world.settle()
    assert world.cluster.writes() == []
    assert world.condition("Ready") == ("True", "ReplicasReady")


# Shared by the platform

SHARED = {f"{HUB}@main": "models/small"}


def mounted(world: World) -> Object:
    volumes = world.child("Deployment", "m")["spec"]["template"]["spec"]["volumes"]
    (found,) = (each["persistentVolumeClaim"] for each in volumes if each["name"] == "weights")
    return found  # type: ignore[no-any-return]


async def test_weights_that_the_platform_shares_are_fetched_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, weights_shared=SHARED)
    world.create(source=HUB, replicas=2)
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")
    assert mounted(world) == {"claimName": "models", "readOnly": True}
    (engine,) = world.child("Deployment", "m")["spec"]["template"]["spec"]["containers"]
    assert "/models/small" in " ".join(engine["command"] + engine.get("args", []))
    assert world.cluster.all("Job") == world.cluster.all("PersistentVolumeClaim") == []
    assert world.status()["weights"]["claim"] == "models"
    assert "affinity" not in world.child("Deployment", "m")["spec"]["template"]["spec"]
    await world.at_rest()


@pytest.mark.parametrize("spec", [{"model": {"revision": "v2"}}, {"weights": {"cached": False}}])
async def test_what_is_not_shared_comes_as_ever(monkeypatch: pytest.MonkeyPatch, spec: Object) -> None:
    world = World(monkeypatch, weights_shared=SHARED)
    world.create(source=HUB, **spec)
    await world.settle()
    assert len(world.cluster.all("Job")) == (0 if "weights" in spec else 1)


async def test_what_runs_is_not_restarted_since_the_platform_shares_now(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.create(source=HUB)
    await fetched(world)
    before = mounted(world)
    await world.restart(weights_shared=SHARED)
    await world.settle()
    assert mounted(world) == before
    await world.restart(weights_shared={})
    await world.at_rest()


@pytest.mark.parametrize(
    "given", ["{", '{"hf://a/b": "models/b"}', '{"hf://a/b@main": "models/../b"}', '{"file://a@main": "models"}']
)
def test_what_is_shared_is_named_with_its_revision_and_its_place(given: str) -> None:
    with pytest.raises(ValidationError):
        OperatorSettings(weights_shared=given)  # type: ignore[arg-type]
