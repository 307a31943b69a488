"""Every event has whom it concerns reconciled; what fails is tried again; nothing stops the others."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from benchmarks.virtual_clock import run
from headwater.kubernetes import LABEL_DEPLOYMENT, LABEL_MANAGED_BY, MANAGED_BY
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import CHILDREN, MODEL_DEPLOYMENT, Key, Object
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile import loop as module
from headwater_operator.reconcile.errands import Errands
from headwater_operator.reconcile.loop import ReconcileLoop
from headwater_operator.reconcile.queue import WorkQueue
from headwater_operator.reconcile.reconciler import Reconciler
from headwater_operator.render.weights import volume_of
from headwater_operator.watch.store import Store
from tests.operator.fake_api import FakeCluster
from tests.operator.working import while_it_works

A, B = Key("default", "a"), Key("default", "b")


def resource(name: str, namespace: str = "default") -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": MODEL_DEPLOYMENT.api_version, "kind": MODEL_DEPLOYMENT.name, "metadata": metadata, "spec": {}}


def child(kind: str, name: str, of: str | None, namespace: str = "default") -> Object:
    labels = {LABEL_MANAGED_BY: MANAGED_BY} | ({LABEL_DEPLOYMENT: of} if of else {})
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": {"accessModes": []}}


class Setup:
    """A loop whose reconciliations a test gives the outcome of."""

    def __init__(self, **settings: Any) -> None:
        self.settings = OperatorSettings(workers=2, resync_interval=300, **settings)
        self.cluster = FakeCluster()
        self.store, self.metrics = Store(), OperatorMetrics()
        self.reconciled: list[tuple[float, Key]] = []
        """When, and whom."""
        self.sweeps = 0
        self.outcome: Callable[[Key], Awaitable[float | None]] = self.nothing
        reconciler = cast("Reconciler", self)
        scaling = Scaling(self.settings, self.cluster, self.metrics)
        queue = WorkQueue()
        self.errands = Errands(queue.add)
        self.loop = ReconcileLoop(
            self.settings, self.cluster, self.store, reconciler, scaling, self.metrics, queue, self.errands
        )

    async def sweep(self) -> None:
        self.sweeps += 1

    async def nothing(self, key: Key) -> float | None:
        return None

    async def reconcile(self, key: Key, failures: int = 0) -> float | None:
        """As the Reconciler's."""
        self.reconciled.append((asyncio.get_running_loop().time(), key))
        return await self.outcome(key)

    def seen(self) -> list[Key]:
        keys = sorted(key for _, key in self.reconciled)
        self.reconciled.clear()
        return keys

    def tell(self, manifest: Object, gone: bool = False) -> None:
        """By a watch."""
        self.loop.observed(manifest, gone)

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        run(while_it_works(self.loop, scenario))

    def reconciles(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("headwater_operator_reconciles_total", {"outcome": outcome})


@pytest.fixture
def it() -> Setup:
    return Setup()


def test_at_the_start_everyone_is_reconciled(it: Setup) -> None:
    it.cluster.add(resource("a"))
    it.cluster.add(resource("b"))

    async def scenario() -> None:
        await asyncio.sleep(1)
        assert it.seen() == [A, B]

    it.run(scenario)
    assert it.reconciles("done") == 2


def test_at_the_start_everything_of_ours_is_known(it: Setup) -> None:
    it.cluster.add(resource("a"))
    it.cluster.add(child("Service", "a-engine", "a"))
    theirs = child("Service", "theirs", "a")
    theirs["metadata"]["labels"] = {LABEL_DEPLOYMENT: "a"}
    it.cluster.add(theirs)
    run(it.loop.load())
    service = next(kind for kind in CHILDREN if kind.name == "Service")
    assert [each["metadata"]["name"] for each in it.store.of(A, service)] == ["a-engine"]
    assert it.loop.waiting == 1


def test_only_the_given_namespaces_are_read() -> None:
    it = Setup(namespaces=["one", "two"])
    for namespace in ("one", "two", "three"):
        it.cluster.add(resource("a", namespace))
    run(it.loop.load())
    assert {each["metadata"]["namespace"] for each in it.store.all(MODEL_DEPLOYMENT)} == {"one", "two"}


@pytest.mark.parametrize("gone", [False, True])
def test_an_event_of_a_child_leads_to_its_resource_and_no_other(it: Setup, gone: bool) -> None:
    for name in ("a", "b"):
        it.cluster.add(resource(name))
    pod = it.cluster.add(child("Pod", "a-1", "a"))

    async def scenario() -> None:
        await asyncio.sleep(1)
        it.seen()
        it.tell(pod | {"metadata": pod["metadata"] | {"resourceVersion": "999"}}, gone)
        await asyncio.sleep(1)
        assert it.seen() == [A]

    it.run(scenario)


def test_what_was_known_already_leads_to_no_reconciliation(it: Setup) -> None:
    made = it.cluster.add(resource("a"))

    async def scenario() -> None:
        await asyncio.sleep(1)
        it.seen()
        it.tell(made)
        await asyncio.sleep(1)
        assert it.seen() == []

    it.run(scenario)


def test_a_volume_its_job_and_its_pods_concern_those_whose_weights_it_holds_and_nobody_else(it: Setup) -> None:
    for name, namespace, source in (
        ("a", "default", "hf://org/one"),
        ("b", "default", "hf://org/one"),
        ("other", "default", "hf://org/two"),
        ("own", "default", "file:///models/one"),
        ("a", "elsewhere", "hf://org/one"),
    ):
        it.cluster.add(resource(name, namespace) | {"spec": {"model": {"source": source}}})
    volume = volume_of("hf://org/one", "main")
    pod = child("Pod", "weights-pod", None)
    pod["metadata"]["ownerReferences"] = [{"kind": "Job", "name": volume, "uid": "1"}]

    job = child("Job", volume, None) | {"spec": {"template": {"spec": {"containers": []}}}}

    async def scenario() -> None:
        for manifest in (child("PersistentVolumeClaim", volume, None), job, pod):
            await asyncio.sleep(1)
            it.seen()
            it.tell(it.cluster.add(manifest))
            await asyncio.sleep(1)
            assert it.seen() == [A, B]

    it.run(scenario)


def test_a_resource_that_goes_is_reconciled_once_more(it: Setup) -> None:
    made = it.cluster.add(resource("a"))

    async def scenario() -> None:
        await asyncio.sleep(1)
        it.seen()
        it.cluster.remove(made)
        it.tell(made, gone=True)
        await asyncio.sleep(1)
        assert it.seen() == [A], "to forget what is remembered of it"
        await asyncio.sleep(1000)
        assert it.seen() == []

    it.run(scenario)


def test_no_resource_is_reconciled_by_two_at_once(it: Setup) -> None:
    it.cluster.add(resource("a"))
    busy = 0

    async def slow(key: Key) -> None:
        nonlocal busy
        busy += 1
        assert busy == 1
        await asyncio.sleep(5)
        busy -= 1

    it.outcome = slow

    async def scenario() -> None:
        for version in range(1000, 1010):
            await asyncio.sleep(1)
            pod = child("Pod", "a-1", "a")
            pod["metadata"] |= {"uid": "1", "resourceVersion": str(version)}
            it.tell(pod)
        await asyncio.sleep(20)
        assert 3 <= len(it.reconciled) <= 4, "many events meanwhile are one more"

    it.run(scenario)


def test_a_slow_one_does_not_hold_up_the_others(it: Setup) -> None:
    for name in ("a", "b"):
        it.cluster.add(resource(name))

    async def slow(key: Key) -> None:
        await asyncio.sleep(1000 if key == A else 0)

    it.outcome = slow

    async def scenario() -> None:
        await asyncio.sleep(1)
        assert it.seen() == [A, B]

    it.run(scenario)


def test_one_reconciliation_begins_in_each_turn_of_the_loop_so_that_all_else_gets_its_own(it: Setup) -> None:
    for number in range(50):
        it.cluster.add(resource(f"m{number}"))
    turns: list[int] = []
    turn = 0

    async def computes(key: Key) -> None:
        turns.append(turn)

    async def scenario() -> None:
        nonlocal turn
        while len(turns) < 50 and turn < 10_000:
            await asyncio.sleep(0)
            turn += 1
        assert len(set(turns)) == 50

    it.outcome = computes
    it.run(scenario)


def test_how_often_it_failed_before_is_told_the_next_time(it: Setup) -> None:
    it.cluster.add(resource("a"))
    told: list[int] = []

    async def reconcile(key: Key, failures: int = 0) -> None:
        told.append(failures)
        if len(told) < 4:
            raise ApiError(500, "InternalError", "no")

    it.reconcile = reconcile  # type: ignore[method-assign]

    async def scenario() -> None:
        await asyncio.sleep(60)
        it.tell(it.cluster.merge("ModelDeployment", "a", {"spec": {"x": 1}}))
        await asyncio.sleep(1)
        assert told == [0, 1, 2, 3, 0]

    it.run(scenario)


def test_time_alone_may_change_something(it: Setup) -> None:
    it.cluster.add(resource("a"))

    async def again(key: Key) -> float:
        return 7

    it.outcome = again

    async def scenario() -> None:
        await asyncio.sleep(22)
        assert [round(time) for time, _ in it.reconciled] == [0, 7, 14, 21]

    it.run(scenario)


@pytest.mark.parametrize("error", [ApiError(500, "InternalError", "no"), RuntimeError("a bug"), KeyError("x")])
def test_what_fails_is_tried_again_later_each_time(it: Setup, error: Exception) -> None:
    for name in ("a", "b"):
        it.cluster.add(resource(name))
    left = 6

    async def fails(key: Key) -> None:
        nonlocal left
        if key == A and left:
            left -= 1
            raise error

    it.outcome = fails

    async def scenario() -> None:
        await asyncio.sleep(100)
        times = [time for time, key in it.reconciled if key == A]
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(times) == 7 and pauses == sorted(pauses) and pauses[0] < 1
        assert [key for _, key in it.reconciled].count(B) == 1, "the others go on as ever"

    it.run(scenario)
    assert it.reconciles("retry") == 6


def test_a_resync_heals_what_a_watch_has_missed(it: Setup) -> None:
    it.cluster.add(resource("a"))
    old = it.cluster.add(child("Pod", "a-1", "a"))

    async def scenario() -> None:
        await asyncio.sleep(1)
        it.seen()
        it.cluster.remove(old)
        it.cluster.add(resource("b"))
        await asyncio.sleep(300)
        assert set(it.seen()) == {A, B}
        assert list(it.store.all(next(kind for kind in CHILDREN if kind.name == "Pod"))) == []

    it.run(scenario)


def test_a_resync_that_fails_is_not_the_last(it: Setup) -> None:
    it.cluster.add(resource("a"))

    async def scenario() -> None:
        await asyncio.sleep(1)
        it.cluster.refuses = lambda call: ApiError(503, "Busy", "later")
        await asyncio.sleep(600)
        it.seen()
        it.cluster.refuses = lambda call: None
        await asyncio.sleep(300)
        assert it.seen() == [A]

    it.run(scenario)


def test_one_that_hangs_is_told_of(it: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    it.cluster.add(resource("a"))

    async def hangs(key: Key) -> None:
        await asyncio.Event().wait()

    it.outcome = hangs
    now = 0.0
    monkeypatch.setattr(module, "time", type("Clock", (), {"monotonic": lambda: now}))

    async def scenario() -> None:
        nonlocal now
        await asyncio.sleep(1)
        assert it.loop.stuck() is None
        now = 601
        assert it.loop.stuck() == "default/a"

    it.run(scenario)
    assert it.loop.stuck() is None, "its worker has ended"
