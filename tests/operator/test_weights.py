"""Weights: one volume and one Job for a source, whoever waits for it, and words that help when it does not work."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import CLAIM, JOB, Object
from headwater_operator.config import OperatorSettings
from headwater_operator.reconcile.weights import Observed, WeightsPhase, WeightsPlan, needs_volume, observe, plan
from headwater_operator.render.weights import volume
from headwater_operator.watch.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = "hf://owner/model"


def deployment(name: str = "chat", source: str = SOURCE, revision: str = "main", **spec: Any) -> ModelDeployment:
    model = {"source": source, "revision": revision} | spec.pop("model", {})
    return ModelDeployment.model_validate(
        {
            "apiVersion": "headwater.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name},
            "spec": {"model": model, **spec},
        }
    )


@dataclass
class Cluster:
    """A namespace: what was applied, and what its controllers would do with it, one call at a time."""

    deployments: dict[str, ModelDeployment]
    claim: Object | None = None
    job: Object | None = None
    pods: list[Object] = field(default_factory=list)
    now: datetime = START
    made: list[str] = field(default_factory=list)
    settings: OperatorSettings = field(default_factory=OperatorSettings)

    def plan(self, uid: str = "u-chat") -> WeightsPlan:
        observed = Observed(self.claim, self.job, self.pods)
        its = self.deployments[uid]
        users = {
            uid: each for uid, each in self.deployments.items() if needs_volume(each) and volume(each) == volume(its)
        }
        return plan(its, users, self.settings, "team", observed, self.now)

    def reconcile(self, uid: str = "u-chat") -> WeightsPlan:
        """As the operator does it."""
        made = self.plan(uid)
        for gone in made.delete:
            assert gone is self.job
            self.job, self.pods = None, []
        for manifest in made.manifests:
            self.apply(manifest)
        return made

    def apply(self, manifest: Object) -> None:
        created = {"uid": f"uid-{manifest['kind']}", "creationTimestamp": self.now.isoformat()}
        if manifest["kind"] == "Job":
            assert self.job is None, "a Job cannot be changed"
            self.job = {**manifest, "metadata": manifest["metadata"] | created, "status": {}}
            self.made.append("Job")
            return
        if self.claim is None:
            self.made.append("PersistentVolumeClaim")
            self.claim = {"status": {"phase": "Pending"}, "metadata": created}
        else:
            assert manifest["spec"] == self.claim["spec"], "a claim's spec cannot be changed"
        self.claim = self.claim | manifest | {"metadata": self.claim["metadata"] | manifest["metadata"]}
        if "ownerReferences" not in manifest["metadata"]:
            self.claim["metadata"].pop("ownerReferences", None)

    def bind(self) -> None:
        assert self.claim is not None
        self.claim["status"]["phase"] = "Bound"

    def end_pod(self, message: str, **ended: Any) -> None:
        assert self.job is not None
        self.now += timedelta(seconds=10)
        ended = {"exitCode": 1, "message": message, "finishedAt": self.now.isoformat()} | ended
        status = {"phase": "Failed", "containerStatuses": [{"name": "fetch", "state": {"terminated": ended}}]}
        self.add_pod(status)
        self.job["status"]["failed"] = self.job["status"].get("failed", 0) + 1

    def add_pod(self, status: dict[str, Any]) -> None:
        metadata = {
            "name": f"pod-{len(self.pods)}",
            "namespace": "team",
            "creationTimestamp": self.now.isoformat(),
            "ownerReferences": [{"uid": "uid-Job"}],
        }
        self.pods.append({"kind": "Pod", "metadata": metadata, "status": status})

    def end_job(self, condition: str, reason: str = "") -> None:
        assert self.job is not None
        self.job["status"]["conditions"] = [{"type": condition, "status": "True", "reason": reason, "message": "it"}]


def cluster(*deployments: ModelDeployment) -> Cluster:
    return Cluster({f"u-{each.name}": each for each in deployments or [deployment()]})


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


# What goes wrong


def test_a_failure_says_what_the_fetcher_said() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.bind()
    world.end_pod("old")
    world.end_pod("hf://owner/model is gated: accept its terms on the hub and set HF_TOKEN.")
    assert world.reconcile().message.startswith(
        "fetching hf://owner/model@main, attempt 3; the last one ended with: hf://"
    )
    world.end_job("Failed", "BackoffLimitExceeded")
    made = world.reconcile()
    assert made.phase is WeightsPhase.FAILED and made.volume is None
    assert made.message.startswith("the weights cannot be fetched: hf://owner/model is gated")
    assert f"delete Job {volume(deployment()).claim}" in made.message


def test_a_job_that_failed_is_made_again_once_it_has_gone() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.end_job("Failed", "BackoffLimitExceeded")
    world.reconcile()
    world.job = None
    assert world.reconcile().phase is WeightsPhase.FILLING
    assert world.made == ["PersistentVolumeClaim", "Job", "Job"]


def test_what_may_mend_it_is_tried_at_once() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.end_pod("gated")
    world.deployments["u-chat"] = deployment(model={"secretRef": {"name": "hub"}})
    assert world.reconcile().delete
    assert world.reconcile().phase is WeightsPhase.FILLING
    assert world.made == ["PersistentVolumeClaim", "Job", "Job"]


def test_a_fetch_that_does_well_is_not_disturbed_by_a_change() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.settings = OperatorSettings(weights_image="another")
    assert not world.reconcile().delete


def test_a_fetch_that_takes_too_long_says_what_to_set() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.end_job("Failed", "DeadlineExceeded")
    assert "not there after 3600 s; give them longer by spec.loadTimeout" in world.reconcile().message


@pytest.mark.parametrize(
    ("ended", "message"),
    [({"reason": "OOMKilled"}, "killed for its memory"), ({"exitCode": 137}, "exit code 137")],
)
def test_a_pod_that_could_say_nothing(ended: dict[str, Any], message: str) -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.end_pod("", **ended)
    world.end_job("Failed")
    assert f"cannot be fetched: {message}" in world.reconcile().message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "names no StorageClass and the cluster has no default one"),
        ({"weights_storage_class": "fast"}, "StorageClass fast gives it no storage"),
    ],
)
def test_a_volume_without_storage_names_the_storage_class(settings: dict[str, str], message: str) -> None:
    world = cluster()
    world.settings = OperatorSettings(**settings)  # type: ignore[arg-type]
    world.reconcile()
    first = world.reconcile()
    assert (first.phase, first.again) == (WeightsPhase.FILLING, None)
    assert world.reconcile().again == 60, "it is Pending, but not for long"
    world.now += timedelta(seconds=120)
    made = world.reconcile()
    assert made.phase is WeightsPhase.PENDING and message in made.message and "for 2 min" in made.message
    assert made.again == 60
    world.bind()
    assert world.reconcile().phase is WeightsPhase.FILLING


def test_a_pod_that_cannot_run_says_why() -> None:
    world = cluster()
    world.reconcile()
    world.reconcile()
    world.bind()
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    world.add_pod({"phase": "Pending", "conditions": [condition]})
    assert "no node for its pod: 0/3 nodes" in world.reconcile().message
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    world.now += timedelta(seconds=1)
    world.add_pod({"phase": "Pending", "containerStatuses": [{"name": "fetch", "state": waiting}]})
    assert "no such image" in world.reconcile().message


def test_a_volume_that_goes_or_is_lost_is_told() -> None:
    world = cluster()
    world.reconcile()
    assert world.claim is not None
    world.claim["status"]["phase"] = "Lost"
    assert world.reconcile().phase is WeightsPhase.FAILED
    world.claim["metadata"]["deletionTimestamp"] = START.isoformat()
    made = world.reconcile()
    assert (made.phase, made.manifests) == (WeightsPhase.PENDING, ())
    assert not made.delete
    world.claim = None
    assert world.reconcile().phase is WeightsPhase.PENDING
    assert world.made == ["PersistentVolumeClaim"] * 2


@pytest.mark.parametrize("ended", [True, False])
def test_a_volume_that_is_to_go_is_not_held_back_by_its_job(ended: bool) -> None:
    """Also when it was deleted to have it fetched again."""
    world = cluster()
    world.reconcile()
    world.reconcile()
    if ended:
        world.end_job("Failed")
    assert world.claim is not None and world.job is not None
    world.claim["metadata"]["deletionTimestamp"] = START.isoformat()
    assert world.reconcile().delete and world.job is None
    assert not world.reconcile().delete


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


def test_a_class_that_gives_no_storage_is_told_also_when_the_job_has_run_out_of_time() -> None:
    world = cluster(deployment(weights={"storageClassName": "slow"}))
    world.reconcile()
    world.reconcile()
    world.now += timedelta(hours=1)
    world.end_job("Failed", "DeadlineExceeded")
    made = world.reconcile()
    assert made.phase is WeightsPhase.FAILED
    assert "StorageClass slow" in made.message and "gives it no storage" in made.message
    assert "give them longer" not in made.message


def test_whose_class_a_shared_volume_has_is_told() -> None:
    first, second = (
        deployment(name, weights={"storageClassName": storage}) for name, storage in (("a", "slow"), ("b", "fast"))
    )
    world = cluster(first, second)
    world.reconcile("u-a")
    world.reconcile("u-b")
    world.now += timedelta(minutes=2)
    message = world.reconcile("u-b").message
    assert "StorageClass slow gives it no storage" in message and "by the first ModelDeployment" in message
