"""A Job whose pod cannot run is told of after a minute, by its own reason, and not by its being late in the end."""

from typing import Any

import pytest

from headwater_operator.cluster.kinds import Object, annotations_of, labels_of, name_of, uid_of
from headwater_operator.reconcile.jobs import HELD_UP
from tests.operator.fake_api import written
from tests.operator.world import World

HUB = "hf://owner/model"
TENSORRT: Object = {"type": "tensorrt-llm", "image": "trt:1", "args": ["--backend", "tensorrt"]}
NO_NODE = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector"
UNBOUND = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
NO_CLASS = 'storageclass.storage.k8s.io "there-is-none" not found'
QUOTA = 'Error creating: pods "weights-1" is forbidden: exceeded quota: compute'
MULTI_ATTACH = "Multi-Attach error for volume pv-1: Volume is already exclusively attached to one node"
PLACED = {"type": "PodScheduled", "status": "True"}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def job_of(world: World, begin: str) -> Object:
    (found,) = (each for each in world.cluster.all("Job") if name_of(each).startswith(begin))
    return found


def add_pod(world: World, job: Object, name: str = "p", **status: Any) -> Object:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name_of(job), "uid": uid_of(job), "controller": True}
    metadata = {"name": name, "namespace": "default", "labels": labels_of(job), "ownerReferences": [owner]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {"phase": "Pending"} | status}
    world.kube._pod = lambda each: None  # type: ignore[method-assign]
    return world.cluster.add(pod)


def unschedulable(message: str) -> Object:
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"conditions": [told]}


def waits(container: str, reason: str, message: str = "") -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"conditions": [PLACED], "containerStatuses": [{"name": container, "state": state}]}


def tell(world: World, about: Object, reason: str, message: str) -> None:
    metadata = {"name": f"{name_of(about)}.{reason}", "namespace": "default"}
    whose = {"kind": about["kind"], "name": name_of(about), "uid": uid_of(about)}
    told = {"reason": reason, "message": message, "count": 0, "type": "Warning", "lastTimestamp": now(world)}
    world.cluster.add({"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": whose} | told)


def now(world: World) -> str:
    return written(world.clock.now())


async def preparing(world: World, stage: str) -> Object:
    """The Job that is at it, without a pod yet."""
    if stage == "fetch":
        world.create(source=HUB)
        await world.settle()
        return job_of(world, "weights-")
    world.create(source=HUB, backend=TENSORRT)
    await world.settle()
    world.kube.finish(name_of(job_of(world, "weights-")))
    await world.settle()
    return job_of(world, "m-build-")


async def a_minute(world: World, seconds: float = 60) -> None:
    world.clock.passed += seconds
    await world.settle()


PODS = [
    ({"status": waits("{}", "ImagePullBackOff", "no such image")}, "ImagePullFailed", "no such image; check "),
    ({"status": waits("{}", "CreateContainerConfigError", 'secret "hub" not found')}, "ConfigMissing", '"hub"'),
    ({"status": unschedulable(NO_NODE)}, "Unschedulable", NO_NODE),
    (
        {"status": {"conditions": [PLACED]}, "event": ("FailedMount", 'secret "certs" not found')},
        "FailedMount",
        "certs",
    ),
    (
        {"status": {"conditions": [PLACED]}, "event": ("FailedAttachVolume", MULTI_ATTACH)},
        "FailedAttachVolume",
        MULTI_ATTACH,
    ),
    ({"about": "Job", "event": ("FailedCreate", QUOTA)}, "PodsRefused", QUOTA),
    ({"about": "PersistentVolumeClaim", "event": ("ProvisioningFailed", NO_CLASS)}, "VolumePending", NO_CLASS),
]


async def hold_up(world: World, job: Object, stage: str, case: Object) -> None:
    if "status" in case:
        status = dict(case["status"])
        if "containerStatuses" in status:
            status["containerStatuses"] = [each | {"name": stage} for each in status["containerStatuses"]]
        status["conditions"] = [each | {"lastTransitionTime": now(world)} for each in status["conditions"]]
        add_pod(world, job, **status)
    if case.get("about") == "PersistentVolumeClaim":
        world.kube.binds = False
        world.cluster.merge("PersistentVolumeClaim", name_of(job), {"status": {"phase": "Pending"}})
        add_pod(world, job, **unschedulable(UNBOUND))
    if "event" in case:
        about = world.child(case["about"], name_of(job)) if "about" in case else world.child("Pod", "p")
        tell(world, about, *case["event"])
    await world.settle()


@pytest.mark.parametrize("stage", ["fetch", "build"])
@pytest.mark.parametrize(("case", "reason", "words"), PODS, ids=lambda it: it if isinstance(it, str) else "")
async def test_what_keeps_a_job_from_its_work_is_the_condition_after_a_minute_and_in_the_end(
    world: World, stage: str, case: Object, reason: str, words: str
) -> None:
    job = await preparing(world, stage)
    await hold_up(world, job, stage, case)
    assert world.condition("Degraded") == ("False", "AsExpected"), "it may pass in a moment"
    again = await world.reconcile()
    assert again is not None and again <= 60
    await a_minute(world)
    assert world.condition("Degraded") == ("True", reason)
    assert words in world.message("Degraded")
    assert words in world.message("Ready")
    assert world.events().count(("Warning", reason)) == 1

    # When the time is over its pods go with it, and what they said with them; nor does a new operator remember.
    for pod in world.cluster.all("Pod"):
        world.cluster.remove(pod)
    await world.settle()
    await world.restart()
    world.kube.finish(name_of(job), "Failed", reason="DeadlineExceeded", message="Job was active too long")
    await world.settle()
    assert world.condition("Degraded") == ("True", reason)
    assert words in world.message("Degraded") and "longer" not in world.message("Degraded")
    assert world.condition("Ready") == ("False", reason)
    assert world.status()["phase"] == "Failed"


async def test_requests_are_held_while_a_node_for_the_fetch_may_be_on_its_way(world: World) -> None:
    add_pod(world, await preparing(world, "fetch"), **unschedulable(NO_NODE))
    await a_minute(world)
    assert world.condition("Degraded") == ("True", "Unschedulable")
    assert world.status()["phase"] == "Downloading", "with Failed they would be refused"


async def test_storage_that_only_takes_its_time_is_no_fault(world: World) -> None:
    world.kube.binds = False
    job = await preparing(world, "fetch")
    claim = world.child("PersistentVolumeClaim", name_of(job))
    tell(world, claim, "ExternalProvisioning", "Waiting for a volume to be created")
    add_pod(world, job, **unschedulable(UNBOUND))
    await a_minute(world, 180)
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.status()["weights"]["phase"] == "Pending"


async def test_a_job_that_gets_on_is_held_up_no_more(world: World) -> None:
    job = await preparing(world, "fetch")
    add_pod(world, job, **waits("fetch", "ImagePullBackOff", "registry is down"))
    await a_minute(world)
    assert annotations_of(world.child("Job", name_of(job)))[HELD_UP].startswith("ImagePullFailed: ")
    running = {"name": "fetch", "state": {"running": {"startedAt": now(world)}}}
    world.cluster.merge("Pod", "p", {"status": {"phase": "Running", "containerStatuses": [running]}})
    await world.settle()
    assert HELD_UP not in annotations_of(world.child("Job", name_of(job)))
    assert world.condition("Degraded") == ("False", "AsExpected")
    world.kube.finish(name_of(job), "Failed", reason="DeadlineExceeded", message="Job was active too long")
    await world.settle()
    assert world.condition("Degraded") == ("True", "WeightsFailed")
    assert "give them longer by spec.loadTimeout" in world.message("Degraded")


async def test_a_short_time_is_not_over_before_what_is_wrong_is_told(world: World) -> None:
    world.create(source=HUB, loadTimeout="30s")
    await world.settle()
    add_pod(world, job_of(world, "weights-"), **unschedulable(NO_NODE))
    await a_minute(world, 15)
    assert world.condition("Degraded") == ("True", "Unschedulable")


async def test_a_change_that_may_mend_it_makes_the_job_anew_before_its_time_is_over(world: World) -> None:
    wrong = {"spec": {"nodeSelector": {"there": "is-none"}}}
    world.create(source=HUB, template=wrong)
    await world.settle()
    job = job_of(world, "weights-")
    add_pod(world, job, **unschedulable(NO_NODE))
    await a_minute(world)
    world.edit(template=None)
    await world.settle()
    made = job_of(world, "weights-")
    assert uid_of(made) != uid_of(job) and "nodeSelector" not in made["spec"]["template"]["spec"]


async def test_where_the_fetcher_s_image_is_from_is_told_rightly(world: World) -> None:
    add_pod(world, await preparing(world, "fetch"), **waits("fetch", "ErrImagePull", "not found"))
    await a_minute(world)
    assert "--weights-image" in world.message("Degraded")
    assert "spec.backend.image" not in world.message("Degraded")


async def test_a_build_that_fails_says_what_the_builder_said(world: World) -> None:
    job = await preparing(world, "build")
    ended = {"exitCode": 1, "message": "no kernel for this GPU\n", "finishedAt": now(world)}
    add_pod(world, job, phase="Failed", containerStatuses=[{"name": "build", "state": {"terminated": ended}}])
    world.cluster.merge("Job", name_of(job), {"status": {"failed": 1}})
    await world.settle()
    assert "attempt 2; the last one ended with: no kernel for this GPU" in world.message("Progressing")
    world.kube.finish(name_of(job), "Failed", reason="BackoffLimitExceeded")
    await world.settle()
    assert world.condition("Degraded") == ("True", "BuildFailed")
    assert "cannot be built: no kernel for this GPU; kubectl logs job/" in world.message("Degraded")


async def test_a_build_that_hangs_ends_and_says_what_to_set(world: World) -> None:
    job = await preparing(world, "build")
    assert job["spec"]["activeDeadlineSeconds"] == 4 * 3600
    world.kube.finish(name_of(job), "Failed", reason="DeadlineExceeded")
    await world.settle()
    assert "was not built after 14400 s; give it longer by spec.loadTimeout" in world.message("Degraded")


async def test_a_suspended_job_is_refused_no_pods(world: World) -> None:
    """As Kueue holds it back."""
    job = await preparing(world, "fetch")
    world.cluster.merge("Job", name_of(job), {"spec": {"suspend": True}})
    world.cluster.calls.clear()
    await a_minute(world, 600)
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert "list" not in {call.verb for call in world.cluster.calls}
