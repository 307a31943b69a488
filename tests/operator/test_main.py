"""The operator's process: it acts only while it holds the Lease, hands it back, and says why it ends."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import kopf
import pytest

from headwater_operator import main, racing
from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import CHILDREN, LEASE, MODEL_DEPLOYMENT, Object
from headwater_operator.cluster.lease import LeaseLostError
from headwater_operator.config import OperatorSettings
from headwater_operator.watch import watches
from tests.operator.fake_api import START, FakeCluster, written
from tests.operator.world import WEIGHTLESS

SETTINGS = OperatorSettings.model_validate({"port": 0, "engine_image": "engine:1"})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """Where the operator acts; its watches tell nothing."""
    made = FakeCluster()

    async def watch(settings: OperatorSettings, observed: watches.Observed) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(main, "Cluster", lambda metrics: made)
    monkeypatch.setattr(main, "watch", watch)
    return made


def resource() -> Object:
    return {
        "apiVersion": MODEL_DEPLOYMENT.api_version,
        "kind": MODEL_DEPLOYMENT.name,
        "metadata": {"name": "m", "namespace": "default"},
        "spec": {"model": {"source": WEIGHTLESS}, "backend": {"type": "headwater"}},
    }


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(condition)


def holder(cluster: FakeCluster) -> str | None:
    lease = cluster.one(LEASE.name, "headwater-operator")
    return (lease["spec"].get("holderIdentity") or None) if lease else None


async def test_it_acts_once_it_holds_the_lease_and_gives_it_back_at_a_signal(cluster: FakeCluster) -> None:
    cluster.add(resource())
    working = asyncio.create_task(main.operate(SETTINGS))
    await until(lambda: cluster.one("Deployment", "m"))
    kinds = [call.kind for call in cluster.calls]
    assert kinds.index(LEASE.name) < kinds.index(MODEL_DEPLOYMENT.name), "it looks at nothing before"
    assert holder(cluster)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(60):
        await working
    assert holder(cluster) is None, "the next one need not wait"


async def test_one_that_waits_for_the_lease_does_nothing_and_ends_at_a_signal(cluster: FakeCluster) -> None:
    cluster.add(resource())
    far = written(START.replace(year=2999))
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 3600, "renewTime": far.replace("Z", ".000000Z")}
    metadata = {"name": "headwater-operator", "namespace": "default"}
    cluster.add({"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec})
    working = asyncio.create_task(main.operate(SETTINGS))
    await until(lambda: cluster.calls)
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(60):
        await working
    assert {call.kind for call in cluster.calls} == {LEASE.name}
    assert holder(cluster) == "other"


async def test_one_that_loses_the_lease_ends_at_once(cluster: FakeCluster) -> None:
    settings = SETTINGS.model_copy(update={"lease_seconds": 3.0})
    working = asyncio.create_task(main.operate(settings))
    await until(lambda: holder(cluster))
    cluster.merge(LEASE.name, "headwater-operator", {"spec": {"holderIdentity": "other"}})
    async with asyncio.timeout(60):
        with pytest.raises(LeaseLostError):
            await working
    assert holder(cluster) == "other", "what is another's is not given back"


@pytest.mark.parametrize(
    "error, status",
    [(LeaseLostError("taken by another"), main.LEASE_LOST), (ApiError(0, "NoConfiguration", "no kubeconfig"), 1)],
)
def test_the_exit_status_says_why_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    async def operate(settings: OperatorSettings) -> None:
        raise error

    monkeypatch.setattr(main, "operate", operate)
    assert main.run(SETTINGS) == status
    if status == 1:
        assert "headwater operate: no kubeconfig" in capsys.readouterr().err


def test_an_end_by_itself_is_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def operate(settings: OperatorSettings) -> None:
        return None

    monkeypatch.setattr(main, "operate", operate)
    assert main.run(SETTINGS) == 0


# Whoever of several ends first


async def forever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise LeaseLostError("lost")


@pytest.mark.parametrize("first, others", [(asyncio.sleep, forever), (forever, asyncio.sleep)])
async def test_the_first_to_end_is_told(first: Callable[..., Awaitable[None]], others: Any) -> None:
    works = [work(0) if work is asyncio.sleep else work() for work in (first, others)]
    assert await racing.first(*works) is (first is asyncio.sleep)


async def test_what_the_first_raises_is_raised_and_the_others_are_waited_for() -> None:
    ended = asyncio.Event()

    async def other() -> None:
        try:
            await forever()
        finally:
            ended.set()

    with pytest.raises(LeaseLostError):
        await racing.first(fails(), other())
    assert ended.is_set()


async def test_who_cancels_it_cancels_them_all() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            await forever()
        finally:
            ended.append(number)

    waiting = asyncio.create_task(racing.first(work(1), work(2)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == [1, 2]


# Watching


class Seen:
    """In place of the Controller."""

    def __init__(self) -> None:
        self.told: list[tuple[Object, bool]] = []

    def observed(self, manifest: Object, deleted: bool) -> None:
        self.told.append((manifest, deleted))


def handlers(seen: Seen, loop: asyncio.AbstractEventLoop) -> list[Any]:
    registry = watches._registry(seen.observed, loop)
    return list(registry._watching._handlers)


async def test_the_resource_and_all_its_children_are_watched_and_strangers_are_not() -> None:
    found = handlers(Seen(), asyncio.get_running_loop())
    labels = {each.selector.any_name: each.labels for each in found}
    assert labels.pop("modeldeployments") is None
    assert set(labels) == {kind.plural for kind in CHILDREN}
    assert all(each == {"app.kubernetes.io/managed-by": "headwater"} for each in labels.values())
    kinds = {(each.selector.group, each.selector.version, each.selector.any_name) for each in found}
    assert ("apps", "v1", "deployments") in kinds and ("", "v1", "pods") in kinds


@pytest.mark.parametrize("kind, gone", [(None, False), ("ADDED", False), ("MODIFIED", False), ("DELETED", True)])
async def test_an_event_is_handed_on_as_the_api_server_wrote_it(kind: str | None, gone: bool) -> None:
    seen = Seen()
    raw = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "status": {"x": [1]}}
    for handler in handlers(seen, asyncio.get_running_loop())[:1]:
        await handler.fn(type=kind, body=kopf.Body(cast("Any", raw)), logger=None, memo=None)
    await asyncio.sleep(0)
    assert seen.told == [(raw, gone)]
    given = seen.told[0][0]
    assert type(given) is dict and type(given["metadata"]) is dict and type(given["metadata"]["labels"]) is dict


async def test_events_come_from_a_thread_of_their_own() -> None:
    seen = Seen()
    handler = handlers(seen, asyncio.get_running_loop())[0]
    body = kopf.Body(cast("Any", {"metadata": {"name": "p"}}))
    await asyncio.to_thread(lambda: asyncio.run(handler.fn(type="ADDED", body=body, logger=None)))
    await asyncio.sleep(0)
    assert len(seen.told) == 1


def test_kopf_only_watches() -> None:
    given = watches._kopf_settings(SETTINGS)
    assert given.posting.enabled is False
    assert given.watching.client_timeout is not None and given.watching.server_timeout is not None
    assert given.watching.client_timeout > given.watching.server_timeout
    assert not given.scanning.disabled
    assert watches._kopf_settings(SETTINGS.model_copy(update={"namespaces": ["one"]})).scanning.disabled


async def test_watches_that_end_by_themselves_end_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ends(**given: Any) -> None:
        return None

    monkeypatch.setattr(kopf, "operator", ends)
    with pytest.raises(RuntimeError, match="ended by themselves"):
        await watches.watch(SETTINGS, Seen().observed)


async def test_watches_are_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[Any] = []

    async def waits(*, stop_flag: Any, **given: Any) -> None:
        flags.append(SimpleNamespace(flag=stop_flag, given=given))
        await until(stop_flag.is_set)

    monkeypatch.setattr(kopf, "operator", waits)
    watching = asyncio.create_task(watches.watch(SETTINGS, Seen().observed))
    await until(lambda: flags)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert flags[0].flag.is_set()
    assert flags[0].given["standalone"] is True and flags[0].given["clusterwide"] is True
