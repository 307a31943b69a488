"""Volumes with weights that nobody asks for: half-filled ones go with their last user, the others are on a list."""

import pytest

from headwater.kubernetes import LABEL_UNUSED
from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Object, labels_of, name_of, uid_of
from headwater_operator.reconcile.sweep import Sweep
from tests.operator.world import World

HUB = "hf://owner/model"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def claims(world: World) -> list[Object]:
    return [each for each in world.cluster.all("PersistentVolumeClaim") if name_of(each).startswith("weights-")]


def unused(world: World) -> list[str]:
    """What `kubectl get pvc -l headwater.dev/unused` lists."""
    world.deliver()
    return [name_of(each) for each in claims(world) if LABEL_UNUSED in labels_of(each)]


async def gone(world: World, name: str = "m") -> None:
    world.delete(name)
    await world.reconcile(name)
    for _ in range(3):
        world.kube.step()
        world.deliver()


async def filled(world: World, *names: str) -> None:
    await world.settle(*names)
    for job in world.cluster.all("Job"):
        world.kube.finish(name_of(job))
    await world.settle(*names)


async def test_a_half_filled_volume_and_its_job_go_with_their_last_user(world: World) -> None:
    world.create("a", source=HUB)
    world.create("b", source=HUB)
    await world.settle("a", "b")
    await gone(world, "a")
    assert len(claims(world)) == len(world.cluster.all("Job")) == 1, "the other one waits for it"
    await gone(world, "b")
    assert claims(world) == [] and world.cluster.all("Job") == []


async def test_a_volume_that_goes_with_its_last_user_is_not_held_back_by_a_job_that_has_ended(world: World) -> None:
    """Its pod said nothing of what it verified, so the Job is not known to be done with."""
    world.create(source=HUB, weights={"keep": False})
    await filled(world)
    (claim,) = claims(world)
    (job,) = world.cluster.all("Job")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fetch-1", "namespace": "default", "ownerReferences": [{"uid": uid_of(job)}]},
        "spec": {
            "volumes": [{"name": "weights", "persistentVolumeClaim": {"claimName": name_of(claim)}}],
            "nodeName": "node",
        },
        "status": {"phase": "Succeeded"},
    }
    world.cluster.add(pod)
    await gone(world)
    assert claims(world) == [] and world.cluster.all("Job") == []


async def test_they_go_too_where_the_last_user_has_moved_on(world: World) -> None:
    world.create(source=HUB)
    await world.settle()
    (before,) = claims(world)
    world.edit(model={"source": "hf://owner/other"})
    await world.settle()
    await world.reconciler.sweep()
    assert [name_of(each) for each in claims(world)] != [] and name_of(before) not in map(name_of, claims(world))
    assert [name_of(each) for each in world.cluster.all("Job")] == [name_of(each) for each in claims(world)]


async def test_a_filled_one_stays_and_is_on_the_list_until_somebody_asks_for_it(world: World) -> None:
    world.create(source=HUB)
    await filled(world)
    assert unused(world) == []
    await gone(world)
    (claim,) = claims(world)
    assert unused(world) == [name_of(claim)]
    world.cluster.calls.clear()
    await world.reconciler.sweep()
    assert world.cluster.calls == [], "once"
    world.create(source=HUB)
    await world.settle()
    assert unused(world) == []
    assert world.condition("Ready") == ("True", "ReplicasReady")
    await world.at_rest()


async def test_claims_of_others_are_neither_marked_nor_deleted(world: World) -> None:
    world.create(source="pvc://disk/m")
    world.cluster.add(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "disk", "namespace": "default"},
            "spec": {"accessModes": ["ReadWriteOnce"]},
        }
    )
    await world.settle()
    await gone(world)
    await world.reconciler.sweep()
    assert LABEL_UNUSED not in labels_of(world.child("PersistentVolumeClaim", "disk"))


async def test_a_resource_that_makes_no_sense_still_asks_for_its_weights(world: World) -> None:
    world.create(source=HUB)
    await filled(world)
    world.edit(loadTimeout="soon")
    await world.settle()
    await world.reconciler.sweep()
    assert unused(world) == []


async def test_who_goes_has_its_own_volumes_looked_at_and_none_of_its_neighbours(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"m{number}" for number in range(20)]
    for number, name in enumerate(names):
        world.create(name, source=f"{HUB}-{number}")
    await world.settle(*names)
    judged, judge = list[str](), Sweep._judge

    async def counted(sweep: Sweep, claim: Object, *, used: bool) -> None:
        judged.append(name_of(claim))
        await judge(sweep, claim, used=used)

    monkeypatch.setattr(Sweep, "_judge", counted)
    for name in names:
        await gone(world, name)
        await world.reconcile(name)  # as what it has left goes, too
    assert len(judged) == len(set(judged)) == len(names)
    assert claims(world) == [] and world.cluster.all("Job") == []


async def test_a_volume_that_was_left_for_another_source_goes_with_who_left_it(world: World) -> None:
    world.create(source=HUB)
    await filled(world)
    (first,) = claims(world)
    world.edit(model={"source": "hf://owner/other"})
    await filled(world)
    await gone(world)
    assert sorted(unused(world)) == sorted(map(name_of, claims(world)))
    assert name_of(first) in unused(world) and len(claims(world)) == 2


async def test_what_cannot_be_swept_now_is_swept_later(world: World) -> None:
    world.create(source=HUB)
    await filled(world)
    world.delete()
    world.cluster.refuses = lambda call: ApiError(503, "Busy", "later")
    with pytest.raises(ApiError):
        await world.reconcile()
    world.cluster.refuses = lambda call: None
    await world.reconcile()
    assert len(unused(world)) == 1
