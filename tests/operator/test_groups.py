"""Groups of pods live and die together."""

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from headwater_operator.cluster.kinds import name_of
from headwater_operator.diagnose.pods import EnginePod
from headwater_operator.reconcile.group_plan import (
    LOADED,
    LOADING_SINCE,
    MEMBERS,
    RESTART_BUDGET,
    RESTARTED_AT,
    RESTARTS,
    Group,
    GroupPlan,
    counted_restart,
    gather,
    heal,
    plan,
)
from headwater_operator.reconcile.rollout import PATIENCE
from tests.operator.group_world import LOAD, NO_GPU, RESYNC, SIZE, Member, World
from tests.operator.objects import NOW, ago, pod, stateful_set, written


@pytest.mark.parametrize("which", range(SIZE))
@pytest.mark.parametrize("what", ["crash", "delete_pod"])
def test_a_container_restart_or_a_replaced_pod_restarts_the_whole_group_once(which: int, what: str) -> None:
    world = World()
    world.settle()
    before = {name: member.uid for name, member in world.pods.items()}
    getattr(world, what)(world.members("m-a-1")[which])
    world.settle()
    world.run(2 * RESYNC)
    assert [name for _, name in world.restarts] == ["m-a-1"]
    changed = {name for name, uid in before.items() if world.pods[name].uid != uid}
    assert changed == {"m-a-1-0", "m-a-1-1"}, "all of its pods, and none of another group"
    assert world.settled()


def test_a_group_whose_pods_have_all_been_replaced_already_is_not_restarted_once_more() -> None:
    world = World()
    world.settle()
    for member in world.members("m-a-1"):
        world.delete_pod(member)
    world.settle()
    world.run(RESYNC)
    assert not world.restarts and world.settled()
    world.delete_pod(world.members("m-a-1")[0])
    world.settle()
    assert [name for _, name in world.restarts] == ["m-a-1"], "the new ones are known as its members"


def test_pain_15_a_lost_node_does_not_leave_its_peers_waiting() -> None:
    world = World()
    world.settle()
    lost, peer = world.members("m-a-0")
    lost.lost = True
    world.run(300)
    world.delete_pod(lost)  # as the node controller does it
    world.settle()
    assert [name for _, name in world.restarts] == ["m-a-0"] and world.buried == ["m-a-0-0"]
    assert peer.uid not in {member.uid for member in world.pods.values()}


def test_a_group_that_crashes_for_ever_is_restarted_ever_later_and_then_left() -> None:
    world = World(wanted=1)
    for _ in range(8000):
        world.step()
        for member in world.pods.values():
            if member.began is not None and member.index == 1 and (world.now - member.began).total_seconds() == 3:
                world.crash(member)
    times = [time for time, _ in world.restarts]
    assert len(times) == RESTART_BUDGET
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
    for gap, pause in zip(gaps, [10, 20, 40, 80, 160, 300, 300], strict=True):
        assert pause <= gap <= pause + 15


def test_ranks_that_give_up_waiting_for_one_that_finds_no_room_use_up_no_restarts() -> None:
    """Which may take hours, until somebody adds a node; what waits ends by itself every now and then."""
    world = World(wanted=1, slots=SIZE - 1)
    for _ in range(2 * RESTART_BUDGET):
        world.run(600)
        for member in world.members("m-a-0"):
            if member.began is not None:
                world.crash(member)
    assert not world.restarts and not world.exhausted
    world.slots = SIZE
    world.settle()


def test_a_restart_long_after_the_last_one_is_the_first_again() -> None:
    world = World(wanted=1)
    world.settle()
    for expected in ("1", "2"):
        world.crash(world.members("m-a-0")[0])
        world.settle()
        assert world.sets["m-a-0"]["metadata"]["annotations"][RESTARTS] == expected
    world.run(3601)
    world.crash(world.members("m-a-0")[0])
    world.settle()
    assert world.sets["m-a-0"]["metadata"]["annotations"][RESTARTS] == "1"


def test_a_group_that_is_well_for_long_has_its_budget_back() -> None:
    world = World(wanted=1)
    world.settle()
    for _ in range(RESTART_BUDGET):
        world.crash(world.members("m-a-0")[0])
        world.run(LOAD + 320)
    assert len(world.restarts) == RESTART_BUDGET and not world.exhausted, "it is well"
    world.run(3601)
    world.crash(world.members("m-a-0")[0])
    world.settle()
    assert world.sets["m-a-0"]["metadata"]["annotations"][RESTARTS] == "1" and not world.exhausted


def test_a_group_that_broke_too_often_is_told_of_only_while_it_is_broken_and_current() -> None:
    world = World(wanted=1)
    world.settle()
    for _ in range(RESTART_BUDGET + 1):
        world.crash(world.members("m-a-0")[0])
        world.run(LOAD + 320)
    assert world.exhausted == ["m-a-0"]
    world.revision = "b"
    world.settle()
    assert not world.exhausted


@pytest.mark.parametrize(("what", "which"), [("crash", 0), ("crash", 1), ("delete_pod", 1)])
def test_a_restart_that_was_cut_off_is_finished(what: str, which: int) -> None:
    """A call fails, or the operator ends, when one of the pods is deleted and the others are not."""
    world = World(wanted=1)
    world.settle()
    before = world.members("m-a-0")
    getattr(world, what)(before[0])
    delete_pod = world.delete_pod
    failed: list[Member] = []

    def fails_once(member: Member, *, at_once: bool = False) -> None:
        if member is before[which] and not failed:
            failed.append(member)
        else:
            delete_pod(member, at_once=at_once)

    world.delete_pod = fails_once  # type: ignore[method-assign]
    world.run(RESYNC)
    assert failed and not {each.uid for each in before} & {each.uid for each in world.pods.values()} and world.settled()


# At one moment


NAMES = {"members": MEMBERS, "restarts": RESTARTS, "at": RESTARTED_AT, "loading": LOADING_SINCE}


def group(
    revision: str = "a", number: int = 0, *, ready: bool = True, seconds: float = 60, **annotations: str
) -> Group:
    """`seconds`: since it got ready."""
    name, told = f"m-{revision}-{number}", dict[str, Any](ready=ready, ready_since=ago(seconds))
    pods = [pod(f"{name}-{each}", revision=revision, group=number, index=each, **told) for each in range(SIZE)]
    named = {NAMES[key]: it for key, it in annotations.items()}
    workload = stateful_set(revision, number, size=SIZE, annotations=named)
    return Group(workload, [EnginePod.of(each) for each in pods])


def planned(*groups: Group, wanted: int = 1, load: dict[str, int] | None = None, strategy: Any = "Auto") -> GroupPlan:
    pods = [pod for group in groups for pod in group.pods]
    return plan(groups, pods, wanted=wanted, revision="a", strategy=strategy, load=load or {}, now=NOW)


def healed(*groups: Group) -> GroupPlan:
    return heal(groups, [pod for group in groups for pod in group.pods], NOW)


def names(groups: Sequence[Group]) -> list[str]:
    return [name_of(each.workload) for each in groups]


@pytest.mark.parametrize(
    ("load", "goes"),
    [
        ({"m-a-0-0": 4, "m-a-1-0": 1, "m-a-2-0": 9}, "m-a-1"),
        ({"m-a-0-0": 4, "m-a-2-0": 9}, "m-a-0"),
        ({"m-a-0-0": 2, "m-a-1-0": 2, "m-a-2-0": 2, "m-a-2-1": 9}, "m-a-2"),
        ({}, "m-a-2"),
    ],
    ids=["the idlest", "what is not known may be busy", "the highest number of equals", "nothing is known"],
)
def test_pain_7_scaling_down_takes_the_idlest_group(load: dict[str, int], goes: str) -> None:
    assert names(planned(group(number=0), group(number=1), group(number=2), wanted=2, load=load).delete) == [goes]


def test_scaling_down_takes_what_does_not_serve_first() -> None:
    result = planned(group(number=0, ready=False), group(number=1), wanted=1, load={"m-a-0-0": 9, "m-a-1-0": 0})
    assert names(result.delete) == ["m-a-0"]


def test_a_rollout_takes_the_idlest_old_group() -> None:
    old = [group("old", each) for each in range(2)]
    result = planned(group(), *old, wanted=2, load={"m-old-0-0": 1, "m-old-1-0": 3})
    assert names(result.delete) == ["m-old-0"]


def test_an_old_group_goes_once_a_new_one_has_been_ready_for_a_while() -> None:
    """It may die of its first request. A Deployment's minReadySeconds are the same."""
    early = planned(group(seconds=4), group("old"))
    assert not early.delete and early.requeue_after == 6
    assert names(planned(group(seconds=10), group("old")).delete) == ["m-old-0"]


def test_that_a_group_has_loaded_is_noted_until_it_begins_anew() -> None:
    known = {"members": "uid-m-a-0-0,uid-m-a-0-1"}
    well, loading = group(**known), group(ready=False, **known)
    assert healed(well).notes == [(well, {LOADING_SINCE: LOADED})] and well.loading_since == NOW
    assert not healed(loading).notes and loading.loading_since == NOW
    again = group(loading=LOADED, ready=False, members="uid-m-a-0-0,another")
    assert again.loading_since is None
    assert counted_restart(again, NOW)[LOADING_SINCE] == NOW.isoformat()
    assert LOADING_SINCE not in counted_restart(loading, NOW), "its time goes on over its restarts"
    replaced = group(loading=LOADED, ready=False, members="others")
    assert healed(replaced).notes == [(replaced, {LOADING_SINCE: NOW.isoformat(), MEMBERS: "uid-m-a-0-0,uid-m-a-0-1"})]


def test_new_groups_get_the_lowest_numbers_that_are_free() -> None:
    assert planned(group(number=1), wanted=4).create == [0, 2, 3]


def test_the_members_of_a_group_are_noted_once_all_are_there() -> None:
    whole = group(ready=False)
    assert healed(whole).notes == [(whole, {MEMBERS: "uid-m-a-0-0,uid-m-a-0-1"})]
    assert not healed(Group(whole.workload, whole.pods[:1])).notes
    assert not healed(group(members="uid-m-a-0-0,uid-m-a-0-1", loading=LOADED)).notes


def test_a_group_is_ready_when_all_its_pods_are() -> None:
    whole, half = group(), group(ready=False)
    assert whole.ready and not Group(whole.workload, [whole.pods[0], half.pods[1]]).ready
    assert not Group(whole.workload, whole.pods[:1]).ready


def test_within_the_pause_a_broken_group_waits_and_says_how_long() -> None:
    result = healed(group(members="uid-m-a-0-0,another", restarts="2", at=written(ago(5))))
    assert not result.restart and result.requeue_after == 15


def test_a_group_without_room_says_when_patience_is_over() -> None:
    name = "m-a-0"
    waiting = [
        EnginePod.of(pod(f"{name}-{each}", revision="a", unschedulable=NO_GPU, created=ago(4))) for each in range(SIZE)
    ]
    result = planned(Group(stateful_set("a", 0), waiting), group("old"))
    assert not result.delete and result.requeue_after == PATIENCE - 4


def test_a_pod_to_be_buried_is_looked_at_again_in_time() -> None:
    """Whether its StatefulSet is still there or not."""
    lost = EnginePod.of(pod("m-a-0-0", group=0, index=0, revision="a", owner="gone", deleted=ago(10)))
    result = heal([], [lost], NOW)
    assert not result.bury and result.requeue_after == 20
    assert heal([], [lost], NOW + timedelta(seconds=20)).bury == [lost]


def test_what_serves_no_more_of_an_old_revision_is_deleted() -> None:
    result = planned(group("old", ready=False), group("old", 1, ready=False, members="uid-m-old-1-0,another"))
    assert names(result.delete) == ["m-old-0", "m-old-1"] and not result.notes


def test_gathering_leaves_out_what_is_about_to_go() -> None:
    going = stateful_set("a", 1)
    going["metadata"]["deletionTimestamp"] = written(NOW)
    found = gather(
        [stateful_set("b", 10), going, stateful_set("a", 2)],
        [EnginePod.of(pod(name, owner=f"uid-{name[:-2]}")) for name in ("m-a-1-0", "m-b-10-0", "m-b-10-1", "m-b-1-0")],
    )
    assert [(each.revision, each.number, [member.name for member in each.pods]) for each in found] == [
        ("a", 2, []),
        ("b", 10, ["m-b-10-0", "m-b-10-1"]),
    ]
