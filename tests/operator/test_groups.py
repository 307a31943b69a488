"""Groups of pods in time: they live and die together, and a rollout goes on whatever happens on its way."""

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_operator.groups import MEMBERS, RESTART_BUDGET, RESTARTED_AT, RESTARTS, Group, GroupPlan, gather, plan
from headwater_operator.kinds import name_of
from headwater_operator.pods import EnginePod
from headwater_operator.rollout import PATIENCE
from tests.operator.group_world import LOAD, NO_GPU, RESYNC, SIZE, Member, World, revision_of
from tests.operator.objects import NOW, ago, pod, stateful_set, written

# Rollouts

CHANGES = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.one_of(
            st.tuples(st.just("revision"), st.sampled_from("abc")),
            st.tuples(st.just("wanted"), st.integers(0, 3)),
            st.tuples(st.just("strategy"), st.sampled_from(["Auto", "Replace"])),
        ),
    ),
    max_size=6,
)
MESS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 100)), max_size=5)


def change(world: World, what: tuple[str, Any]) -> None:
    setattr(world, *what)


def in_a_mess(world: World, mess: Sequence[tuple[str, int, int]]) -> None:
    """Groups of any revisions, some ready, some not, some without room."""
    for revision, number, _ in mess:
        world.add(revision, number)
    world._make_pods()
    world._schedule()
    for revision, number, age in mess:
        for member in world.members(f"m-{revision}-{number}"):
            if member.began is not None:
                member.began -= timedelta(seconds=age)


@settings(max_examples=60)
@given(st.sampled_from([6, 7, 8, 100]), MESS, CHANGES)
def test_pain_1_whatever_happened_it_ends_in_what_is_wanted(slots: int, mess: Any, changes: Any) -> None:
    """Six slots are as many as three groups take: there is no room for a surge."""
    world = World(slots)
    in_a_mess(world, mess)
    for after, what in changes:
        change(world, what)
        world.run(after)
    world.settle()
    world.run(RESYNC + 50)
    assert world.settled() and not world.restarts


FAULTS = st.lists(
    st.tuples(
        st.integers(0, 150),
        st.sampled_from(["crash", "delete_pod", "lose", "revision", "wanted"]),
        st.integers(0, 9),
    ),
    max_size=6,
)


def lose(world: World, member: Member) -> None:
    member.lost = True
    world.delete_pod(member)


@settings(max_examples=40)
@given(st.sampled_from([6, 7, 8]), st.sampled_from([2, 60]), FAULTS)
def test_whatever_breaks_in_a_rollout_it_ends_in_what_is_wanted(slots: int, drain: int, faults: Any) -> None:
    world = World(slots, drain=drain)
    world.settle()
    for after, what, which in faults:
        placed = [member for member in world.pods.values() if member.began is not None and member.going is None]
        if what == "revision":
            world.revision = "abc"[which % 3]
        elif what == "wanted":
            world.wanted = 1 + which % 3
        elif placed:
            member = placed[which % len(placed)]
            lose(world, member) if what == "lose" else getattr(world, what)(member)
        world.run(after)
    world.settle(3000)


@settings(max_examples=60)
@given(st.sampled_from(["Auto", "Surge"]), MESS, CHANGES)
def test_with_room_nothing_is_missing_at_any_time(strategy: Any, mess: Any, changes: Any) -> None:
    world = World(100, strategy=strategy)
    in_a_mess(world, mess)
    for after, what in [*changes, (400, ("wanted", 2))]:
        if what[0] == "strategy":
            continue
        change(world, what)
        for _ in range(after):
            before = world.ready()
            world.step()
            assert world.ready() >= min(before, world.wanted)
    assert not world.no_room


def test_pain_1_a_rollout_without_room_for_a_surge_goes_on() -> None:
    world = World(slots=4)
    world.settle()
    world.revision = "b"
    world.settle()
    assert len(world.no_room) == 2, "each old group went only when a new one had found no room"
    assert world.deleted == ["m-a-1", "m-a-0"]


def test_a_surge_that_the_resource_asks_for_waits_for_room() -> None:
    world = World(slots=4, strategy="Surge")
    world.settle()
    world.revision = "b"
    world.run(1000)
    assert (world.ready("a"), world.ready("b")) == (2, 0)
    world.slots = 6
    world.settle()


@pytest.mark.parametrize("slots", [4, 6])
@pytest.mark.parametrize("after", [1, 12, 30, 80, 100, 150])
def test_pain_4_a_revert_in_mid_rollout_leaves_what_serves_alone(slots: int, after: int) -> None:
    world = World(slots)
    world.settle()
    world.revision = "b"
    world.run(after)
    world.revision = "a"
    serving = [name for name in world.sets if world.serves(name) and revision_of(world.sets[name]) == "a"]
    before = len(world.deleted)
    world.settle()
    assert not set(serving) & set(world.deleted[before:])


def test_replace_never_has_more_than_wanted_and_one_after_the_other() -> None:
    world = World(strategy="Replace", wanted=3)
    world.settle()
    world.revision = "b"
    for _ in range(4 * (LOAD + 10)):
        world.step()
        assert len(world.sets) <= 3 and world.ready() >= 2
    assert world.settled()


def test_a_rollout_to_what_never_gets_ready_leaves_the_old_ones() -> None:
    for strategy, left in (("Auto", 3), ("Surge", 3), ("Replace", 2)):
        world = World(strategy=strategy, wanted=3)  # type: ignore[arg-type]
        world.settle()
        world.revision = "bad"
        for _ in range(1000):
            world.step()
            for member in world.pods.values():
                if member.revision == "bad" and member.began is not None:
                    member.began = world.now
        assert world.ready("a") == left


def test_to_zero_and_back() -> None:
    world = World()
    world.settle()
    world.wanted = 0
    world.run(20)
    assert not world.sets and not world.pods
    world.wanted = 2
    world.settle()


# Members


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


# At one moment


def group(revision: str = "a", number: int = 0, *, ready: bool = True, **annotations: str) -> Group:
    name = f"m-{revision}-{number}"
    pods = [pod(f"{name}-{each}", revision=revision, group=number, index=each, ready=ready) for each in range(SIZE)]
    named = {{"members": MEMBERS, "restarts": RESTARTS, "at": RESTARTED_AT}[key]: it for key, it in annotations.items()}
    workload = stateful_set(revision, number, size=SIZE, annotations=named)
    return Group(workload, [EnginePod.of(each) for each in pods])


def planned(*groups: Group, wanted: int = 1, load: dict[str, int] | None = None, strategy: Any = "Auto") -> GroupPlan:
    return plan(groups, wanted=wanted, revision="a", strategy=strategy, load=load or {}, now=NOW)


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


def test_new_groups_get_the_lowest_numbers_that_are_free() -> None:
    assert planned(group(number=1), wanted=4).create == [0, 2, 3]


def test_the_members_of_a_group_are_noted_once_all_are_there() -> None:
    assert names(planned(group(ready=False)).remember) == ["m-a-0"]
    whole = group()
    assert not planned(Group(whole.workload, whole.pods[:1])).remember
    assert not planned(group(members="uid-m-a-0-0,uid-m-a-0-1")).remember


def test_a_group_is_ready_when_all_its_pods_are() -> None:
    whole, half = group(), group(ready=False)
    assert whole.ready and not Group(whole.workload, [whole.pods[0], half.pods[1]]).ready
    assert not Group(whole.workload, whole.pods[:1]).ready


def test_within_the_pause_a_broken_group_waits_and_says_how_long() -> None:
    result = planned(group(members="uid-m-a-0-0,another", restarts="2", at=written(ago(5))))
    assert not result.restart and result.look_again == 15


def test_a_group_without_room_says_when_patience_is_over() -> None:
    name = "m-a-0"
    waiting = [EnginePod.of(pod(f"{name}-{each}", unschedulable=NO_GPU, created=ago(4))) for each in range(SIZE)]
    result = planned(Group(stateful_set("a", 0), waiting), group("old"))
    assert not result.delete and result.look_again == PATIENCE - 4


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
