"""Weights: one volume and one Job for a source, whoever waits for it."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_operator.cluster.kinds import CLAIM, JOB
from headwater_operator.reconcile.weights import Observed, WeightsPhase, WeightsPlan, observe
from headwater_operator.render.weights import volume
from headwater_operator.watch.store import Store
from tests.operator.weights_world import SOURCE, cluster, deployment

# From nothing to filled


def test_a_volume_then_a_job_and_the_volume_says_that_it_is_filled() -> None:
    world = cluster()
    assert world.reconcile().phase is WeightsPhase.PENDING
    assert world.reconcile().phase is WeightsPhase.FILLING
    world.bind()
    filling = world.reconcile()
    assert filling.phase is WeightsPhase.FILLING and filling.volume is None
    assert filling.message == "fetching hf://owner/model@main"
    world.end_job("Complete")
    assert world.reconcile().volume == volume(deployment())
    world.job = None
    filled = world.reconcile()
    assert filled.phase is WeightsPhase.FILLED, "the Job has gone, the truth has not"
    assert filled.shown() == {"phase": "Filled", "claim": volume(deployment()).claim}
    assert world.made == ["PersistentVolumeClaim", "Job"]


def test_the_status_says_what_was_verified_also_when_the_pod_that_said_so_is_gone() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.end_pod("the line broke")
    world.end_pod("3 files, 15.2 GiB, verified: 3 by sha256", exitCode=0)
    world.end_job("Complete")
    assert world.reconcile().message == "3 files, 15.2 GiB, verified: 3 by sha256"
    world.job, world.pods = None, []
    assert world.reconcile().shown()["message"] == "3 files, 15.2 GiB, verified: 3 by sha256"
    assert world.claim is not None
    assert (
        world.claim["metadata"]["annotations"]["headwater.dev/verified"] == "3 files, 15.2 GiB, verified: 3 by sha256"
    )


def test_the_job_goes_once_the_volume_tells_all_that_its_pod_told() -> None:
    """Its pod would hold back a volume that goes with its last user."""
    world = cluster(deployment(weights={"keep": False}))
    world.reconcile()
    world.reconcile()
    world.bind()
    world.end_pod("3 files, verified", exitCode=0)
    world.end_job("Complete")
    first = world.reconcile()
    assert not first.delete and first.again, "the volume is told first"
    assert world.reconcile().delete and world.job is None
    last = world.reconcile()
    assert (last.phase, last.message, last.again) == (WeightsPhase.FILLED, "3 files, verified", None)
    assert world.made == ["PersistentVolumeClaim", "Job"], "nothing is fetched again"


def test_a_job_whose_pod_has_not_been_heard_yet_stays() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.end_job("Complete")
    for _ in range(3):
        made = world.reconcile()
        assert (made.phase, made.delete, made.again) == (WeightsPhase.FILLED, (), None)
    world.end_pod("3 files, verified", exitCode=0)
    world.reconcile()
    assert world.reconcile().delete


def test_the_job_fetches_to_where_the_pods_will_look() -> None:
    world = cluster(deployment(model={"secretRef": {"name": "hub"}}, loadTimeout="2h"))
    world.reconcile()
    world.reconcile()
    assert world.job is not None and world.claim is not None
    there = volume(deployment())
    assert world.claim["metadata"]["name"] == world.job["metadata"]["name"] == there.claim
    assert there.claim.startswith("weights-") and len(there.claim) == len("weights-") + 16
    spec = world.job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["headwater", "fetch", SOURCE, there.path, "--revision", "main"]
    assert spec["activeDeadlineSeconds"] == 7200 and spec["ttlSecondsAfterFinished"] and spec["backoffLimit"]
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    assert token in container["env"]
    assert spec["template"]["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    (owner,) = world.job["metadata"]["ownerReferences"]
    assert owner["kind"] == "PersistentVolumeClaim" and owner["uid"] == "uid-PersistentVolumeClaim"


@pytest.mark.parametrize(
    ("source", "cached"),
    [("pvc://shelf/m", True), ("package://m", True), ("random:tiny", True), ("file:///m", True), (SOURCE, False)],
)
def test_what_is_not_fetched_needs_no_volume(source: str, cached: bool) -> None:
    made = cluster(deployment(source=source, weights={"cached": cached})).plan()
    assert made == WeightsPlan(WeightsPhase.NOT_NEEDED) and made.shown() == {}


def test_credentials_go_by_the_kind_of_source() -> None:
    secret = {"secretRef": {"name": "s", "key": "k"}}
    for source, env, env_from in [
        ("s3://bucket/m", [], [{"secretRef": {"name": "s"}}]),
        (
            "oci://registry/m:1",
            [{"name": "DOCKER_AUTH_CONFIG", "valueFrom": {"secretKeyRef": secret["secretRef"]}}],
            None,
        ),
    ]:
        world = cluster(deployment(source=source, model=secret))
        world.reconcile()
        world.reconcile()
        assert world.job is not None
        (container,) = world.job["spec"]["template"]["spec"]["containers"]
        assert [each for each in container["env"] if "valueFrom" in each] == env
        assert container.get("envFrom") == env_from


def test_the_job_goes_where_the_engines_will() -> None:
    template = {"spec": {"nodeSelector": {"zone": "a"}, "hostNetwork": True}}
    world = cluster(deployment(template=template, backend={"env": {"HF_ENDPOINT": "http://mirror"}}))
    world.reconcile()
    world.reconcile()
    assert world.job is not None
    pod = world.job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"zone": "a"} and "hostNetwork" not in pod
    assert {"name": "HF_ENDPOINT", "value": "http://mirror"} in pod["containers"][0]["env"]


# Several ModelDeployments


def test_two_of_one_source_share_volume_and_job_without_taking_turns() -> None:
    first = deployment("chat", weights={"size": "10Gi"})
    second = deployment("code", weights={"size": "20Gi"}, model={"secretRef": {"name": "hub"}})
    world = cluster(first, second)
    for uid in ["u-chat", "u-code"] * 3:
        world.reconcile(uid)
    assert world.made == ["PersistentVolumeClaim", "Job"]
    world.end_pod("no")
    for uid in ["u-chat", "u-code"] * 3:
        assert not world.reconcile(uid).delete
    assert world.plan("u-chat").manifests == world.plan("u-code").manifests


def test_another_revision_is_another_volume() -> None:
    names = {volume(deployment(revision=revision, source=source)).claim for revision, source in [
        ("main", SOURCE), ("v2", SOURCE), ("main", "hf://owner/other")
    ]}  # fmt: skip
    assert len(names) == 3


@pytest.mark.parametrize(
    ("keep", "owners"), [((True, True), []), ((True, False), []), ((False, False), ["chat", "code"])]
)
def test_the_volume_goes_with_its_last_user_unless_one_wants_it_kept(
    keep: tuple[bool, bool], owners: list[str]
) -> None:
    world = cluster(
        *(deployment(name, weights={"keep": each}) for name, each in zip(["chat", "code"], keep, strict=True))
    )
    world.reconcile()
    world.reconcile()
    assert world.claim is not None
    assert [each["name"] for each in world.claim["metadata"]["ownerReferences"]] == ["chat", "code"], "half filled"
    world.end_job("Complete")
    world.reconcile()
    references = world.claim["metadata"].get("ownerReferences", [])
    assert [each["name"] for each in references] == owners
    assert not any(each.get("controller") for each in references)


def test_one_that_has_moved_on_still_holds_the_volume_until_it_goes() -> None:
    world = cluster(deployment("chat", weights={"keep": False}), deployment("code", weights={"keep": False}))
    world.reconcile()
    world.deployments["u-code"] = deployment("code", source="hf://owner/other", weights={"keep": False})
    world.reconcile()
    assert world.claim is not None
    assert [each["name"] for each in world.claim["metadata"]["ownerReferences"]] == ["chat", "code"]


# Properties


@given(
    st.lists(st.sampled_from(["reconcile", "other", "bind", "fail", "give up", "done", "forget", "wait"]), max_size=25)
)
def test_only_a_filled_volume_is_given_out_and_a_filled_one_stays(steps: list[str]) -> None:
    world = cluster(deployment("chat"), deployment("code"))
    done = False
    for step in steps:
        active = world.job is not None and "conditions" not in world.job["status"]
        if step in ("reconcile", "other"):
            made = world.reconcile("u-chat" if step == "reconcile" else "u-code")
            assert (made.volume is not None) == (made.phase is WeightsPhase.FILLED) == done
        elif step == "bind" and world.claim:
            world.bind()
        elif step == "fail" and active:
            world.end_pod("no")
        elif step == "give up" and active:
            world.end_job("Failed")
        elif step == "done" and active:
            world.end_job("Complete")
            done = True
            world.reconcile()
        elif step == "forget":
            world.job, world.pods = None, []
        elif step == "wait":
            world.now += timedelta(minutes=2)
    assert world.made.count("PersistentVolumeClaim") <= 1


def test_what_is_observed_is_what_belongs_to_the_source() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.end_pod("no")
    store = Store()
    assert world.claim and world.job
    for manifest in (world.claim, world.job, world.pods[0]):
        manifest["metadata"] |= {"namespace": "team", "resourceVersion": "1"}
        store.put(manifest)
    stranger = {"kind": "Pod", "metadata": {"name": "x", "namespace": "team", "ownerReferences": [{"uid": "other"}]}}
    store.put(stranger)
    assert observe(store, "team", deployment()) == Observed(world.claim, world.job, [world.pods[0]])
    assert observe(store, "elsewhere", deployment()) == Observed(None, None, [])
    assert {CLAIM.name, JOB.name} == {world.claim["kind"], world.job["kind"]}
