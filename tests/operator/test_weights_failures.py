"""Weights that do not come: words that help, and what is tried again."""

from datetime import timedelta
from typing import Any

import pytest

from headwater_operator.config import OperatorSettings
from headwater_operator.reconcile.weights import WeightsPhase
from headwater_operator.render.weights import volume
from tests.operator.weights_world import START, cluster, deployment


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
    assert "no node takes pod pod-0: 0/3 nodes" in world.reconcile().message
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
