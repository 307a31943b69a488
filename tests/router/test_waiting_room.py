"""The waiting room itself: every request is in one line, counted once, and goes in its order."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headwater_router.admission.room import AGEING, Line, Room, Waiter, WaitReason

LIMITS = {WaitReason.NOT_READY: 4, WaitReason.FULL: 6, WaitReason.NO_CONNECTION: 10}
MOST_BYTES = 100

lines = st.builds(Line, st.sampled_from(["m", "n"]), st.none(), st.sampled_from([frozenset(), frozenset(["a"])]))
reasons = st.sampled_from(WaitReason)


class Rooms(RuleBasedStateMachine):
    """A room beside a plain list of who is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.room: Room[Waiter] = Room(MOST_BYTES)
        self.inside: list[Waiter] = []
        self.now = 0.0

    @rule(
        line=lines,
        scope=st.sampled_from(["x", "y"]),
        size=st.integers(0, 40),
        alone=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
        passed=st.sampled_from([0.0, 0.5, 10.0]),
        reason=reasons,
    )
    def somebody_comes(
        self, line: Line, scope: str, size: int, alone: float, passed: float, reason: WaitReason
    ) -> None:
        self.now += passed
        waiter = Waiter(line, scope, size, self.now + AGEING * alone, reason)
        before = [each for each in self.inside if (each.reason, each.scope) == (reason, scope)]
        fits = len(before) < LIMITS[reason] and sum(each.size for each in self.inside) + size <= MOST_BYTES
        assert self.room.enter(waiter, LIMITS[reason]) == fits
        if fits:
            self.inside.append(waiter)

    @precondition(lambda self: self.inside)
    @rule(number=st.integers(0, 100), twice=st.booleans())
    def somebody_leaves(self, number: int, twice: bool) -> None:
        waiter = self.inside.pop(number % len(self.inside))
        self.room.leave(waiter)
        if twice:
            self.room.leave(waiter)

    @rule(room=st.dictionaries(lines, st.integers(0, 3)), model=st.sampled_from([None, "m", "n"]), reason=reasons)
    def something_changes(self, room: dict[Line, int], model: str | None, reason: WaitReason) -> None:
        """`room`: how many of each line can go on now."""
        waited_for = {waiter: waiter.reason for waiter in self.inside}
        went: list[Waiter] = []
        tried: Counter[Line] = Counter()

        def go(waiter: Waiter) -> WaitReason | None:
            tried[waiter.line] += 1
            if not room.get(waiter.line):
                return reason
            room[waiter.line] -= 1
            went.append(waiter)
            return None

        before = {
            line: [each for each in self.ordered() if each.line == line] for line in {w.line for w in self.inside}
        }
        changed = self.room.advance(go, None if model is None else model.__eq__)
        assert len(set(map(id, went))) == len(went)
        for line, waiting in before.items():
            gone = [waiter for waiter in went if waiter.line == line]
            assert gone == waiting[: len(gone)], "in their order"
            if model in (None, line.model):
                left = waiting[len(gone) :]
                assert not left or not room.get(line), "nobody waits who could go"
                assert tried[line] == len(gone) + bool(left), "one who cannot go speaks for all of its line"
                assert all(waiter.reason is reason for waiter in left)
            else:
                assert not tried[line]
        self.inside = [waiter for waiter in self.inside if waiter not in went]
        assert set(map(id, changed)) == {id(each) for each in self.inside if each.reason is not waited_for[each]}

    def ordered(self) -> list[Waiter]:
        return sorted(self.inside, key=lambda waiter: waiter.order)

    @invariant()
    def all_are_counted_once(self) -> None:
        assert set(map(id, self.room)) == set(map(id, self.inside))
        assert self.room.bytes == sum(waiter.size for waiter in self.inside)
        assert self.room.counts == Counter((waiter.reason, waiter.scope) for waiter in self.inside)
        assert +self.room.totals == Counter(waiter.reason for waiter in self.inside)
        assert bool(self.room) == bool(self.inside)

    @invariant()
    def nobody_who_came_after_anothers_rank_is_before_it(self) -> None:
        ordered = self.ordered()
        assert [waiter.rank for waiter in ordered] == sorted(waiter.rank for waiter in ordered)

    @invariant()
    def it_knows_how_many_go_before_one_that_would_come_now(self) -> None:
        for model in ("m", "n"):
            before = [each for each in self.inside if each.line.model == model and each.rank < self.now + AGEING]
            assert self.room.ahead(model, self.now + AGEING) == len(before)


TestRooms = Rooms.TestCase
TestRooms.settings = settings(max_examples=30, stateful_step_count=30)


def test_of_several_lines_the_least_rank_goes_first() -> None:
    room: Room[Waiter] = Room(MOST_BYTES)
    for model, rank in (("m", 3.0), ("n", 1.0), ("m", 2.0), ("n", 4.0)):
        room.enter(Waiter(Line(model), "x", 1, rank, WaitReason.FULL), 10)
    went: list[float] = []
    room.advance(lambda waiter: went.append(waiter.rank))
    assert went == [1.0, 2.0, 3.0, 4.0]


def test_a_long_request_is_passed_by_shorter_ones_for_so_long_and_no_longer() -> None:
    """One short request comes each second, and one goes each second."""
    room: Room[Waiter] = Room(10**9)
    long = Waiter(Line("m"), "x", 1, AGEING * 9.0, WaitReason.FULL)
    room.enter(long, 1000)
    for second in range(100):
        room.enter(Waiter(Line("m"), "x", 1, second + AGEING * 1.0, WaitReason.FULL), 1000)
        gone: list[Waiter] = []
        room.advance(lambda waiter, gone=gone: WaitReason.FULL if gone else gone.append(waiter))
        if gone == [long]:
            break
    assert second == AGEING * (9.0 - 1.0)
