"""A rollout of groups goes on whatever happens on its way, and takes no more from what serves than it must."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_operator.reconcile.rollout import PATIENCE
from tests.operator.group_world import LOAD, RESYNC, Member, World, revision_of
from tests.operator.objects import NOW

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
            assert world.ready() >= min(before, world.wanted) and not world.no_room


def test_pain_1_a_rollout_without_room_for_a_surge_goes_on() -> None:
    world = World(slots=4)
    world.settle()
    world.revision = "b"
    world.settle()
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


def test_new_groups_that_die_of_their_first_request_leave_the_old_ones() -> None:
    world = World(wanted=2)
    world.settle()
    world.revision = "bad"
    for _ in range(1500):
        world.step()
        for member in world.pods.values():
            if member.revision == "bad" and member.ready(world.now - timedelta(seconds=5)):
                world.crash(member)
        assert world.ready("a") == 2


def test_to_zero_and_back() -> None:
    world = World()
    world.settle()
    world.wanted = 0
    world.run(20)
    assert not world.sets and not world.pods
    world.wanted = 2
    world.settle()


def missing_at_most_one(world: World, seconds: int = 900) -> None:
    for _ in range(seconds):
        world.step()
        assert world.ready() >= world.wanted - 1, f"{(world.now - NOW).total_seconds()}: {world.deleted} gone"
    assert world.settled()


@pytest.mark.parametrize("drain", [5, 120])
@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_pain_1_without_room_old_groups_go_one_after_the_other(wanted: int, drain: int) -> None:
    world = World(slots=2 * wanted, wanted=wanted, drain=drain)
    world.settle()
    world.revision = "b"
    missing_at_most_one(world)


@given(MESS, CHANGES)
def test_without_room_one_is_missing_at_most(mess: Any, changes: Any) -> None:
    world = World(6, wanted=3)
    in_a_mess(world, mess)
    for after, what in [*changes, (400, ("revision", "d"))]:
        if what[0] == "revision":
            change(world, what)
        for _ in range(after):
            before = world.ready()
            world.step()
            assert world.ready() >= min(before, world.wanted - 1)
    world.settle()


def test_a_lack_of_room_counts_only_after_a_while_and_without_an_event() -> None:
    world = World(slots=4)
    world.settle()
    world.revision = "b"
    world.run(int(PATIENCE))
    assert world.ready() == 2
    world.run(5)
    assert world.ready() == 1


def test_a_lack_of_room_is_found_once_and_told_until_the_rollout_is_over() -> None:
    world = World(slots=6, wanted=3)
    world.settle()
    world.revision = "b"
    world.run(int(PATIENCE) + 5)
    while world.ready("a"):
        assert world.no_room and world.ready() + 1 == world.wanted
        while world.ready() < world.wanted:
            world.step()
        world.run(12)
    world.settle()
    world.slots, world.revision = 8, "c"
    missing = 0
    for _ in range(500):
        world.step()
        missing += world.ready() < world.wanted
    assert world.settled() and not missing, "the next one begins with a surge"


@pytest.mark.parametrize("strategy", ["Auto", "Surge"])
@pytest.mark.parametrize("collect_after", [0, 20])
def test_with_room_for_a_surge_a_long_drain_is_no_lack_of_room(strategy: Any, collect_after: int) -> None:
    """What the last old one leaves is awaited, not taken from the next."""
    world = World(slots=6, drain=120, strategy=strategy, collect_after=collect_after)
    world.settle()
    world.revision = "b"
    for _ in range(900):
        world.step()
        assert world.ready() >= 2 and not world.no_room, world.deleted
    assert world.settled()


def test_the_last_ready_group_is_not_taken_while_another_one_drains() -> None:
    world = World(slots=4, drain=120)
    world.settle()
    world.revision, world.wanted = "b", 1
    for _ in range(600):
        world.step()
        assert world.ready() >= 1, world.deleted
    assert world.settled()


def test_a_pod_that_its_lost_node_never_ends_is_not_awaited() -> None:
    world = World(slots=4)
    world.settle()
    lose(world, world.members("m-a-1")[0])
    world.revision = "b"
    world.run(90)
    assert world.buried == ["m-a-1-0"]
    world.settle()


def test_pain_4_pods_of_an_earlier_set_of_the_same_name_are_not_its_own() -> None:
    """A revert before the garbage collector has got to the pods of the deleted set."""
    world = World(wanted=1, collect_after=10)
    world.settle()
    world.revision = "b"
    while "m-a-0" in world.sets:
        world.step()
    world.revision = "a"  # m-a-0's pods are there and ready still
    for _ in range(300):
        world.step()
        assert world.ready() >= 1
    assert world.settled() and not world.restarts
