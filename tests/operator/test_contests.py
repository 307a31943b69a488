"""Two operators that look after one namespace with other settings write now and then, and say so."""

import httpx
import pytest

from headwater.kubernetes import LABEL_MANAGED_BY, MANAGED_BY
from headwater_operator import main
from headwater_operator.cluster.kinds import Key, Object, labels_of
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile.contests import Contests
from tests.operator.world import World

THEIRS = {"podSelector": {"matchLabels": {"app": "their-router"}}}
OURS = {"podSelector": {"matchLabels": {"app": "router"}}}
KEY = Key("default", "m")


class Two:
    """A second operator beside that of a World."""

    def __init__(self, world: World, **settings: object) -> None:
        self.world = world
        own = OperatorSettings.model_validate({**world.settings, **settings})
        self.loop = main._build(own, world.cluster, OperatorMetrics(), "operator-2", httpx.AsyncClient())

    async def run(self, seconds: float) -> None:
        """Both reconcile ten times a second, as if each of their writes were news to the other."""
        for _ in range(round(seconds * 10)):
            self.world.clock.passed += 0.1
            self.world.kube.step()
            self._deliver()
            await self.world.reconciler.reconcile(KEY)
            self._deliver()
            await self.loop._reconciler.reconcile(KEY)

    def _deliver(self) -> None:
        for gone, manifest in self.world.cluster.news:
            if manifest["kind"] == "ModelDeployment" or labels_of(manifest).get(LABEL_MANAGED_BY) == MANAGED_BY:
                self.loop.observed(manifest, gone)
        self.world.deliver()


def writes(world: World, kind: str) -> int:
    return sum(call.kind == kind and call.verb in ("apply", "delete") for call in world.cluster.calls)


@pytest.mark.parametrize("theirs", [[THEIRS], []], ids=["others are let in", "none is wanted"])
async def test_two_operators_do_not_write_without_end(monkeypatch: pytest.MonkeyPatch, theirs: list[Object]) -> None:
    world = World(monkeypatch, engine_routers=[OURS], gateway_url="http://ours")
    two = Two(world, engine_routers=theirs, gateway_url="http://theirs")
    world.create()
    await two.run(5)
    world.cluster.calls.clear()
    await two.run(20)
    assert writes(world, "NetworkPolicy") <= 6, "200 turns of each"
    assert writes(world, "ModelDeployment") <= 6
    assert ("Warning", "Contested") in world.events()
    await world.restart()
    await world.settle()
    assert len(world.cluster.all("NetworkPolicy")) == 1, "who is alone has its way"
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_an_edit_by_hand_is_mended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, engine_routers=[OURS])
    world.create()
    await world.settle()
    for _ in range(3):
        world.cluster.merge("NetworkPolicy", "m-engine", {"spec": {"ingress": [{}]}})
        await world.settle()
        assert world.child("NetworkPolicy", "m-engine")["spec"]["ingress"][0]["from"] == [OURS]
    assert world.condition("Degraded") == ("False", "AsExpected")


def test_what_is_written_otherwise_is_no_contest() -> None:
    contests, place = Contests(), ("Deployment", "default", "m")
    for number in range(100):
        assert not contests.wait(place, f"revision {number}", "uid")
        contests.wrote(place, f"revision {number}")
    assert contests.held_back("uid") is None
