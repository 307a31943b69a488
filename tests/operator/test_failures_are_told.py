"""Whatever fails three times in a row is in the status, wherever in a reconciliation it was raised."""

from operator import attrgetter
from typing import Any, NoReturn

import pytest

from headwater.kubernetes import LABEL_GROUP
from headwater_operator.diagnose.pods import EnginePod
from tests.operator.world import World

PLACES = [
    "_store.of",
    "_store.names.standing",
    "_scaling.routable",
    "_scaling.shares",
    "_healing.heal",
    "_store.specs.read",
    "_children.apply",
    "_children._adapters.keep",
    "_children._prerequisites.weights",
]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
async def test_what_fails_three_times_is_a_condition_with_the_last_error(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception]
) -> None:
    world.create(backend={"type": "vllm"}, adapters=[{"name": "sql", "source": "hf://owner/sql"}])

    def fails(*_: Any) -> NoReturn:
        raise error(f"not today, {tries}")

    owner, _, name = place.rpartition(".")
    monkeypatch.setattr(attrgetter(owner)(world.reconciler), name, fails)
    for tries in range(3):
        with pytest.raises(error):
            await world.reconcile(failures=tries)
    assert world.condition("Degraded") == ("True", "ReconcileFailed")
    assert "not today, 2" in world.message("Degraded") and error.__name__ in world.message("Degraded")


async def test_it_is_told_no_more_once_it_has_passed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.create()

    def fails(*_: Any) -> NoReturn:
        raise ValueError("not today")

    with monkeypatch.context() as patched:
        patched.setattr(world.reconciler._store.names, "standing", fails)
        with pytest.raises(ValueError):
            await world.reconcile(failures=2)
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


@pytest.mark.parametrize("label", ["x", "", "1-0", "1.5", "1_0", "9" * 30])
@pytest.mark.parametrize("key", [LABEL_GROUP, "apps.kubernetes.io/pod-index"])
async def test_a_label_that_somebody_writes_on_a_pod_stops_nothing(world: World, key: str, label: str) -> None:
    world.create()
    await world.settle()
    (pod,) = world.kube.pods()
    world.cluster.merge("Pod", pod["metadata"]["name"], {"metadata": {"labels": {key: label}}})
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")
    read = EnginePod.of(world.kube.pods()[0])
    assert read.group is None and read.index == 0
