"""The Lease is renewed whatever the loop of those who act is busy with, and none of them acts once it is lost."""

import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from headwater_operator.cluster import lease_thread
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.kinds import LEASE, Object
from headwater_operator.cluster.lease import LeaseHolder, LeaseLostError
from headwater_operator.cluster.lease_thread import LEASE_LOST, LeaseThread
from tests.operator.fake_api import FakeCluster

SECONDS = 0.6


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """With which status the process would have ended."""
    told: list[int] = []
    monkeypatch.setattr(lease_thread.os, "_exit", told.append)  # type: ignore[attr-defined]
    return told


def held(cluster: FakeCluster, grace: float = 60, seconds: float = SECONDS) -> LeaseThread:
    def candidate(connected: Cluster) -> LeaseHolder:
        return LeaseHolder(connected, "default", "operator", "me", seconds)

    return LeaseThread(lambda: cluster, candidate, grace=grace)


def lease(cluster: FakeCluster) -> Object:
    return cast("Object", cluster.one(LEASE.name, "operator"))


def compute_until(condition: Callable[[], Any]) -> None:
    """Without letting the loop do anything else."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError(condition)


async def test_it_is_renewed_while_a_reconciliation_computes(cluster: FakeCluster) -> None:
    async with held(cluster) as holding:
        await holding.acquired()
        before = int(lease(cluster)["metadata"]["resourceVersion"])
        compute_until(lambda: int(lease(cluster)["metadata"]["resourceVersion"]) >= before + 3)
    assert lease(cluster)["spec"]["holderIdentity"] == "", "it is given back at the end"


async def test_its_loss_is_told(cluster: FakeCluster, ended: list[int]) -> None:
    with pytest.raises(LeaseLostError):
        async with held(cluster) as holding:
            await holding.acquired()
            cluster.merge(LEASE.name, "operator", {"spec": {"holderIdentity": "other"}})
            await holding.lost()
    assert ended == []
    assert lease(cluster)["spec"]["holderIdentity"] == "other"


async def test_who_computes_on_after_its_loss_is_ended(cluster: FakeCluster, ended: list[int]) -> None:
    async with held(cluster, grace=0.01) as holding:
        await holding.acquired()
        cluster.merge(LEASE.name, "operator", {"spec": {"holderIdentity": "other"}})
        compute_until(lambda: ended)
    assert ended == [LEASE_LOST]


async def test_who_waits_in_vain_can_leave(cluster: FakeCluster) -> None:
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 3600}
    metadata = {"name": "operator", "namespace": "default"}
    cluster.add({"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec})
    async with held(cluster):
        pass
    assert lease(cluster)["spec"] == spec


async def test_what_ends_the_thread_is_told_to_who_waits(ended: list[int]) -> None:
    class Broken(FakeCluster):
        async def __aenter__(self) -> "FakeCluster":
            raise RuntimeError("no cluster")

    with pytest.raises(RuntimeError, match="no cluster"):
        async with held(Broken()) as holding:
            await holding.acquired()
