"""Routers tell one another their load and what they know, in virtual time, over a channel that loses messages."""

import random
from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.admission.ceiling import Report
from headwater_router.index import PrefixIndex
from headwater_router.picker import make
from headwater_router.picker.base import Backlog, Load, Others, Prompt, Target
from headwater_router.picker.prefix import PrefixPicker
from headwater_router.replicas.message import Ask, Changes, EngineLoad, Held, Loads, Prefix, decode, encode, read
from tests.router.indexing import depths, exhaust
from tests.router.talking import ENGINES, STEP, Channel, Router


def test_each_knows_what_all_others_have_at_an_engine_and_does_not_count_itself() -> None:
    routers = [Router(str(number)) for number in range(8)]
    channel = Channel(*routers)
    for number, router in enumerate(routers):
        load = router.targets["a"].load
        load.in_flight, load.queued, load.prefill_tokens = number, number // 2, 100 * number
    channel.run(0.3)
    assert routers[0].others("a") == Others(28, 12, 2800)
    assert routers[7].others("a") == Others(21, 9, 2100)
    assert routers[0].others("b") == Others(0, 0, 0)
    routers[7].targets["a"].load.in_flight = routers[7].targets["a"].load.queued = 0
    channel.run(0.3)
    assert routers[0].others("a") == Others(21, 9, 2100)


def test_what_changes_is_told_at_once_and_what_ends_with_it() -> None:
    one, other = Router("one"), Router("other")
    channel = Channel(one, other)
    channel.run(0.3)
    load = other.targets["a"].load
    load.in_flight, load.queued, load.prefill_tokens, load.prompt_tokens = 2, 1, 700, 900
    channel.run(2 * STEP)
    assert one.others("a") == Others(2, 1, 700, 900)
    load.in_flight = load.queued = load.prefill_tokens = load.prompt_tokens = 0
    channel.run(2 * STEP)
    assert one.others("a") == Others(0, 0, 0)


@pytest.mark.parametrize("then", [0, 3])
def test_a_change_whose_message_was_lost_is_in_the_next_one(then: int) -> None:
    one, other = Router("one"), Router("other")
    channel = Channel(one, other)
    load = other.targets["a"].load
    load.in_flight = 1
    channel.run(0.31)
    load.in_flight = then
    channel.lost = lambda: True
    channel.run(STEP)
    channel.lost = lambda: False
    channel.run(STEP)
    assert one.others("a") == Others(then, 0, 0)


def test_what_others_queue_at_an_engine_is_one_queue_whose_head_is_what_was_sent_first() -> None:
    routers = [Router(str(number)) for number in range(3)]
    channel = Channel(*routers)
    for sent, moved, router in zip((0.05, 0.02), (float("-inf"), 0.01), routers[1:], strict=True):
        load = router.targets["a"].load
        load.in_flight = load.queued = 2
        load.backlog = Backlog(work=1000 * sent + 50, head_work=1000 * sent, head_at=sent, moved_at=moved)
    channel.run(0.3)
    found = routers[0].backlog("a")
    assert found.work == pytest.approx(170)
    assert (found.head_work, found.head_at, found.moved_at) == pytest.approx((20, 0.02, 0.01))
    assert routers[0].backlog("b") == Backlog()


def test_of_what_others_had_computed_counts_what_came_since_they_were_heard_of_whatever_is_lost() -> None:
    one, other = Router("one"), Router("other")
    channel = Channel(one, other)
    load = other.targets["a"].load
    load.in_flight, load.backlog.computed = 1, 700.0
    channel.run(0.3)
    assert one.backlog("a").computed == 0
    channel.lost = lambda: True
    load.in_flight, load.backlog.computed = 2, 900.0
    channel.run(0.1)
    channel.lost = lambda: False
    load.in_flight, load.backlog.computed = 0, 1000.0
    channel.run(1)
    load.in_flight, load.backlog.computed = 1, 1100.0
    channel.run(0.3)
    assert one.backlog("a").computed == 400


def test_a_router_that_does_not_tell_its_backlog_has_the_prompts_that_it_counts() -> None:
    one = Router("one")
    channel = Channel(one)
    exhaust(one.replica.incoming(encode("other", [Loads(3.0, [EngineLoad("a", 2, 1, 700, 900)])]), channel.now))
    one.replica.outgoing(channel.now + 0.1)
    assert one.backlog("a") == Backlog(work=700)


def test_a_prompt_whose_message_was_lost_is_told_once_more_and_not_again() -> None:
    one, other = Router("one"), Router("other")
    channel = Channel(one, other)
    channel.run(0.3)
    channel.lost = lambda: True
    one.answered("a", [1, 2, 3])
    channel.run(0.1)
    channel.lost = lambda: False
    assert depths(other.index, [1, 2, 3], 0.0) == {}
    channel.run(3)
    assert depths(other.index, [1, 2, 3], 0.0) == {"other:a": 3}
    told = [item for data in one.sent for raw in decode(data).items if isinstance(item := read(raw), Prefix)]
    assert len(told) == 2


def test_changes_of_a_router_that_has_not_told_all_yet_mean_nothing() -> None:
    one = Router("one")
    exhaust(one.replica.incoming(encode("other", [Changes([EngineLoad("a", 3, 0, 0)])]), 0.0))
    assert one.others("a") is None


def test_who_ends_is_not_counted_after_a_second_and_where_nobody_is_heard_nothing_is_known() -> None:
    routers = [Router(str(number)) for number in range(3)]
    channel = Channel(*routers)
    for router in routers:
        router.targets["a"].load.in_flight = 1
    channel.run(0.3)
    assert routers[0].others("a") == Others(2, 0, 0)
    channel.routers.remove(routers[2])
    channel.run(1.5)
    assert routers[0].others("a") == Others(1, 0, 0)
    channel.routers.remove(routers[1])
    channel.run(1.5)
    assert routers[0].others("a") is None


def test_while_a_router_of_an_older_release_is_there_gauges_are_the_better_word() -> None:
    one, other = Router("one"), Router("other")
    channel = Channel(one, other)
    channel.run(0.3)
    assert one.others("a") is not None
    exhaust(one.replica.incoming(encode("old", []), channel.now))
    channel.run(0.3)
    assert one.others("a") is None
    channel.run(11)
    assert one.others("a") is not None


def test_without_a_way_to_the_others_nothing_is_known_of_them() -> None:
    one, other = Router("one"), Router("other")
    Channel(one, other).run(0.3)
    one.replica.left()
    assert one.others("a") is None


def test_a_policy_goes_by_what_other_routers_say_before_it_goes_by_gauges() -> None:
    index = PrefixIndex()
    picker = make("prefix", index, random.Random(0))
    assert isinstance(picker, PrefixPicker)
    busy, idle = Target("busy", Load(reported=Report(0, 0))), Target("idle", Load(reported=Report(9)))
    busy.load.others, idle.load.others = Others(9, 5, 5000), Others(0, 0, 0)
    assert picker.pick(Prompt("m", [], 100), [busy, idle], 0.0).target is idle
    busy.load.others = idle.load.others = None
    assert picker.pick(Prompt("m", [], 100), [busy, idle], 0.0).target is busy


def test_a_router_that_comes_late_is_told_what_the_one_knows_that_is_there_for_longest() -> None:
    old, young, late = Router("old"), Router("young"), Router("late")
    channel = Channel(old)
    channel.run(5)
    channel.join(young)
    old.answered("a", list(range(50)))
    old.answered("b", list(range(100, 120)))
    channel.run(3)
    channel.join(late)
    late.answered("a", [1000])
    channel.run(3)
    assert late.asked() == ["old"]
    assert depths(late.index, range(50), 0.0) == {"late:a": 50}
    assert depths(late.index, range(100, 120), 0.0) == {"late:b": 20}
    assert depths(late.index, [1000], 0.0) == {"late:a": 1}
    assert not old.asked()
    late.index.check()


def test_another_one_is_asked_where_there_is_no_answer_and_not_for_ever() -> None:
    old, late = Router("old"), Router("late")
    channel = Channel(old)
    channel.run(5)
    channel.join(late)
    channel.lost = lambda: False
    old.replica._begin_answer = lambda *_: 0  # type: ignore[method-assign,assignment]
    channel.run(40)
    assert late.asked() == ["old"] * 3


def test_what_was_not_asked_for_is_not_taken_and_a_question_is_not_answered_again_and_again() -> None:
    old, late = Router("old"), Router("late")
    channel = Channel(old, late)
    channel.run(1)
    exhaust(late.replica.incoming(encode("evil", [Held("late", "a", [1, 2], [1, 1])]), channel.now))
    assert depths(late.index, [1, 2], 0.0) == {}
    old.answered("a", [1, 2])
    for _ in range(100):
        exhaust(old.replica.incoming(encode("evil", [Ask("old")]), channel.now))
    before = len(old.sent)
    channel.run(1)
    told = [item for data in old.sent[before:] for raw in decode(data).items if isinstance(item := read(raw), Held)]
    assert [list(each.blocks) for each in told] == [[2, 1]] or [list(each.blocks) for each in told] == [[1, 2]]


def test_no_answer_is_longer_than_a_router_wants_to_hear() -> None:
    old, late = Router("old"), Router("late")
    channel = Channel(old)
    channel.run(5)
    channel.join(late)
    channel.run(0.3)
    assert late.asked() == ["old"]
    blocks = deque(range(1_000_000))
    for _ in range(100):
        piece = [blocks.popleft() for _ in range(4000)]
        exhaust(late.replica.incoming(encode("old", [Held("late", "a", piece, [1] * 4000)]), channel.now))
    assert late.index.size().dispatched <= 200_000
    late.index.check()


def test_what_is_recalled_pushes_nothing_out() -> None:
    index = PrefixIndex()
    index.answered("a", [1, 2], index.dispatched("a", [1, 2], None, 0.0, 4))
    index.recalled("a", [(10, 1), (9, 1), (8, 1), (7, 1)], 4)
    index.check()
    assert depths(index, [1, 2], 0.0) == {"a": 2}
    assert index.size().dispatched == 4
    index.answered("a", [3, 4], index.dispatched("a", [3, 4], None, 0.0, 4))
    assert depths(index, [1, 2], 0.0) == {"a": 2}
    index.recalled("a", [(11, 10**9)], 4)
    index.check()


@given(seed=st.integers(0, 1000), loss=st.floats(0, 0.9))
def test_whatever_is_lost_no_router_believes_in_load_that_nobody_has(seed: int, loss: float) -> None:
    rng = random.Random(seed)
    routers = [Router(str(number)) for number in range(3)]
    channel = Channel(*routers)
    channel.lost = lambda: rng.random() < loss
    for _ in range(10):
        for router in routers:
            load = router.targets[rng.choice(ENGINES)].load
            load.in_flight = rng.randrange(5)
            load.queued = min(load.in_flight, rng.randrange(5))
        channel.run(0.2)
        for router in routers:
            for engine in ENGINES:
                assert (others := router.others(engine)) is None or others.queued <= others.in_flight <= 8
    channel.lost = lambda: False
    channel.run(0.3)
    for router in routers:
        others = router.others("a")
        assert others is not None
        assert others.in_flight == sum(each.targets["a"].load.in_flight for each in routers if each is not router)


def test_kinds_and_fields_of_a_newer_release_are_passed_over() -> None:
    one, other = Router("one"), Router("other")
    channel = Channel(one, other)
    newer = msgspec.msgpack.encode(
        [
            "other",
            ["loads.9", {}],
            ["loads.1", 3.0, [["a", 2, 1, 7, 9, 5.0, 0.0, 0.0, None, 0.0, None, "more"]], "and more"],
            5,
        ]
    )
    exhaust(one.replica.incoming(newer, channel.now))
    assert one.malformed.value == 1, "the number is no item"
    one.replica.outgoing(channel.now + 0.1)
    assert one.others("a") == Others(2, 1, 7, 9)
    older = msgspec.msgpack.encode(["other", ["loads.1", 3.0, [["a", 2, 1, 7]]]])
    exhaust(one.replica.incoming(older, channel.now))
    one.replica.outgoing(channel.now + 0.2)
    assert one.others("a") == Others(2, 1, 7, 0)
    assert isinstance(read(msgspec.Raw(msgspec.msgpack.encode(["loads.1", 1.0, []]))), Loads)


@pytest.mark.parametrize(
    "item", [["loads.1", -1.0, []], ["loads.1", 1.0, [["a", -1, 0, 0]]], ["held.2", "to", "a", [-1], []]]
)
def test_an_item_that_makes_no_sense_is_malformed(item: list[object]) -> None:
    one = Router("one")
    exhaust(one.replica.incoming(msgspec.msgpack.encode(["other", item]), 0.0))
    assert one.malformed.value == 1


def with_ranks(router: Router, count: int = 2) -> list[Target]:
    """The engine "a" of it is so many."""
    targets = [Target(f"{router.replica.name}:a.{rank}", rank=rank) for rank in range(count)]
    others = [(name, target) for name, target in router.targets.items() if name != "a"]
    router.replica._engines = lambda: [*(("a", each) for each in targets), *others]
    return targets


def test_what_is_said_of_a_rank_is_of_that_rank() -> None:
    one, other = Router("one"), Router("other")
    ours, theirs = with_ranks(one), with_ranks(other)
    channel = Channel(one, other)
    theirs[1].load.in_flight, theirs[1].load.prefill_tokens = 3, 500
    channel.run(0.3)
    assert [each.load.others and each.load.others[:3] for each in ours] == [(0, 0, 0), (3, 0, 500)]
    theirs[0].load.in_flight = 1
    channel.run(2 * STEP)
    assert [each.load.others and each.load.others.in_flight for each in ours] == [1, 3]
    other.index.answered(theirs[1].id, [5, 6], other.index.dispatched(theirs[1].id, [5, 6], None, 0.0, 10_000))
    channel.run(0.1)
    assert depths(one.index, [5, 6], 0.0) == {ours[1].id: 2}


def test_a_router_that_comes_late_is_told_what_each_rank_holds() -> None:
    early, late = Router("early"), Router("late")
    theirs, ours = with_ranks(early), with_ranks(late)
    channel = Channel(early)
    for rank, target in enumerate(theirs):
        chain = [10 * rank + 1, 10 * rank + 2]
        early.index.answered(target.id, chain, early.index.dispatched(target.id, chain, None, 0.0, 10_000))
    channel.run(5.0)
    channel.join(late)
    channel.run(2.0)
    assert depths(late.index, [1, 2], channel.now) == {ours[0].id: 2}
    assert depths(late.index, [11, 12], channel.now) == {ours[1].id: 2}


def test_where_one_speaks_of_ranks_and_another_of_the_whole_the_gauges_count() -> None:
    one, other = Router("one"), Router("other")
    ours = with_ranks(one)
    channel = Channel(one, other)
    channel.run(0.3)
    assert all(each.load.others is not None for each in ours), "nothing is there"
    other.targets["a"].load.in_flight = other.targets["b"].load.in_flight = 2
    ours[0].load.in_flight = 1
    channel.run(0.3)
    assert [each.load.others for each in ours] == [None, None]
    assert other.targets["a"].load.others is None
    assert one.others("b") == Others(2, 0, 0)
    other.answered("a", [1, 2])
    one.index.answered(ours[0].id, [3, 4], one.index.dispatched(ours[0].id, [3, 4], None, 0.0, 10_000))
    channel.run(0.1)
    assert depths(one.index, [1, 2], 0.0) == {}, "nobody knows of which rank it is"
    assert depths(other.index, [3, 4], 0.0) == {other.targets["a"].id: 2}


def test_messages_without_a_rank_are_of_what_one_target_stands_for() -> None:
    """As routers before ranks were told apart have sent them."""
    one = Router("one")
    one.replica.joined(0.0)
    older = msgspec.msgpack.encode(
        [
            "older",
            ["prefix.2", "a", [1, 2]],
            ["loads.1", 3.0, [["a", 2, 1, 7, 9, 5.0, 0.0, 0.0, None, 0.0], ["b", 1, 0, 0]]],
        ]
    )
    exhaust(one.replica.incoming(older, 0.1))
    one.replica.outgoing(0.2)
    assert (one.others("a"), one.others("b")) == (Others(2, 1, 7, 9), Others(1, 0, 0))
    assert depths(one.index, [1, 2], 0.2) == {one.targets["a"].id: 2}
    assert one.malformed.value == 0
