"""Objects are written when they differ, once, and only where they are ours."""

import pytest

from headwater.kubernetes import LABEL_DEPLOYMENT, LABEL_MANAGED_BY, MANAGED_BY
from headwater_operator.cluster.kinds import DEPLOYMENT, SERVICE, Object, uid_of
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile.applier import AUTOSCALER, Applier, NotOursError, StillGoingError
from headwater_operator.watch.store import Store
from tests.operator.fake_api import FakeCluster

OWNER = "uid-of-m"


def service(port: int = 80, owner: str | None = OWNER, **metadata: object) -> Object:
    references = [{"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "name": "m", "uid": owner}]
    labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_DEPLOYMENT: "m"}
    named = {
        "name": "m-engine",
        "namespace": "default",
        "labels": labels,
        "ownerReferences": references if owner else [],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": named | metadata, "spec": {"ports": [{"port": port}]}}


def deployment(**spec: object) -> Object:
    made = service()
    template = {"metadata": {"labels": {}}, "spec": {"containers": [{"name": "engine", "image": "engine:1"}]}}
    return made | {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": template, **spec}}


class Setup:
    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.begin()

    def begin(self) -> None:
        """As a new process."""
        self.store, self.metrics = Store(), OperatorMetrics()
        self.applier = Applier(self.cluster, self.store, self.metrics)

    def verbs(self) -> list[str]:
        verbs = [call.verb for call in self.cluster.calls]
        self.cluster.calls.clear()
        return verbs

    def written(self, kind: str) -> float | None:
        return self.metrics.registry.get_sample_value("headwater_operator_applied_total", {"kind": kind})

    def watch(self, kind: str, name: str) -> None:
        found = self.cluster.one(kind, name)
        assert found is not None
        self.store.put(found)


@pytest.fixture
def it() -> Setup:
    return Setup()


async def test_what_is_not_there_is_made_and_known_from_then_on(it: Setup) -> None:
    made = await it.applier.apply(service(), OWNER)
    assert it.verbs() == ["get", "apply"]
    assert it.store.get(SERVICE, "default", "m-engine") == made
    await it.applier.apply(service(), OWNER)
    assert it.verbs() == []
    assert it.written("Service") == 1


async def test_what_differs_is_written(it: Setup) -> None:
    await it.applier.apply(service(), OWNER)
    changed = await it.applier.apply(service(port=81), OWNER)
    assert changed["spec"]["ports"] == [{"port": 81}]
    assert it.written("Service") == 2


async def test_a_new_process_takes_what_is_as_it_should_be_for_granted(it: Setup) -> None:
    await it.applier.apply(service(), OWNER)
    it.begin()
    it.verbs()
    await it.applier.apply(service(), OWNER)
    assert it.verbs() == ["get"]


async def test_what_comes_back_in_another_notation_is_not_written_again(it: Setup) -> None:
    amounts = deployment()
    amounts["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": 4}}
    for _ in range(3):
        await it.applier.apply(amounts, OWNER)
    assert it.verbs() == ["get", "apply"]
    it.cluster.merge("Deployment", "m-engine", {"spec": {"paused": True}})
    it.watch("Deployment", "m-engine")
    await it.applier.apply(amounts | {"spec": amounts["spec"] | {"paused": False}}, OWNER)
    assert it.verbs() == ["apply"], "its version is no longer that of our own write"


async def test_a_write_that_changed_nothing_is_not_counted(it: Setup) -> None:
    amounts = deployment()
    amounts["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": 4}}
    await it.applier.apply(amounts, OWNER)
    it.begin()
    await it.applier.apply(amounts, OWNER)
    assert it.written("Deployment") is None


async def test_a_field_that_is_no_longer_rendered_goes_with_the_next_write(it: Setup) -> None:
    await it.applier.apply(deployment(minReadySeconds=5), OWNER)
    changed = await it.applier.apply(deployment(replicas=2), OWNER)
    assert "minReadySeconds" not in changed["spec"]


async def test_a_stranger_is_not_touched(it: Setup) -> None:
    theirs = it.cluster.add(service(owner=None, labels={"app": "theirs"}))
    with pytest.raises(NotOursError, match="Service m-engine already that Headwater did not make"):
        await it.applier.apply(service(), OWNER)
    assert it.verbs() == ["get"]
    assert it.cluster.one("Service", "m-engine") == theirs


async def test_a_child_of_an_earlier_resource_is_not_taken_over(it: Setup) -> None:
    it.cluster.add(service(owner="uid-of-the-one-before"))
    with pytest.raises(StillGoingError, match="Service m-engine"):
        await it.applier.apply(service(), OWNER)
    assert it.verbs() == ["get"]


async def test_what_is_shared_needs_no_owner_but_our_label(it: Setup) -> None:
    it.cluster.add(service(owner="uid-of-another"))
    await it.applier.apply(service(port=81, owner="uid-of-another"), None)
    it.cluster.merge("Service", "m-engine", {"metadata": {"labels": {LABEL_MANAGED_BY: None}}})
    it.begin()
    with pytest.raises(NotOursError):
        await it.applier.apply(service(), None)


async def test_replicas_are_the_autoscalers_once_it_scaled(it: Setup) -> None:
    made = await it.applier.apply(deployment(replicas=1), OWNER)
    scaled = await it.applier.scale(made, 5)
    assert scaled["spec"]["replicas"] == 5
    assert AUTOSCALER in {each["manager"] for each in scaled["metadata"]["managedFields"]}
    assert it.store.get(DEPLOYMENT, "default", "m-engine") == scaled
    again = await it.applier.apply(deployment(paused=True), OWNER)
    assert again["spec"]["replicas"] == 5
    back = await it.applier.apply(deployment(replicas=2), OWNER)
    assert back["spec"]["replicas"] == 2
    assert AUTOSCALER not in {each["manager"] for each in back["metadata"]["managedFields"]}


async def test_deleting_takes_this_very_object(it: Setup) -> None:
    made = await it.applier.apply(service(), OWNER)
    await it.applier.delete(made | {"metadata": made["metadata"] | {"uid": "uid-of-another-life"}})
    assert it.cluster.one("Service", "m-engine")
    await it.applier.delete(made)
    assert it.cluster.one("Service", "m-engine") is None
    await it.applier.delete(made)  # gone already is fine
    it.store.remove(made)
    assert uid_of(await it.applier.apply(service(), OWNER)) != uid_of(made)
