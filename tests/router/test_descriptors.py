"""Open files are shared out before the system refuses one: in order, within bounds, and nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from headwater.http.descriptors import Descriptors, Place

LIMIT = 200
"""Half of it is room: a hundred."""


class Kept:
    """An idle connection to an endpoint."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def full() -> Descriptors:
    """All that requests may have is taken."""
    descriptors = Descriptors(LIMIT)
    while descriptors.take():
        pass
    return descriptors


def test_who_waits_is_told_when_a_request_or_a_client_has_gone() -> None:
    descriptors = Descriptors(LIMIT)
    assert descriptors.admit() is Place.ROOM
    while descriptors.take():
        pass
    waiting, told = 0, []
    descriptors.follow(lambda: waiting, lambda: told.append(descriptors.take()))
    descriptors.give()
    assert told == [], "nobody waits"
    assert descriptors.take()
    waiting = 3
    assert (descriptors.waiting, descriptors.crowded) == (3, True)
    descriptors.give()
    descriptors.leave(Place.ROOM)
    assert told == [True, True]
    assert not descriptors.take()


def test_clients_are_let_in_while_requests_wait_and_then_to_the_anteroom_and_then_not_at_all() -> None:
    descriptors = full()
    places = []
    while (place := descriptors.admit()) is not None:
        places.append(place)
    assert places[0] is Place.ROOM
    assert places[-1] is Place.ANTEROOM
    assert places == sorted(places, key=[Place.ROOM, Place.ANTEROOM].index)
    for place in places:
        descriptors.leave(place)
    assert descriptors.admit() is Place.ROOM


def test_clients_alone_cannot_take_what_requests_need() -> None:
    descriptors = Descriptors(LIMIT)
    while descriptors.admit() is Place.ROOM:
        pass
    assert descriptors.take()


def test_a_connection_that_nobody_uses_gives_way_the_oldest_first() -> None:
    descriptors = Descriptors(LIMIT)
    kept = [Kept() for _ in range(descriptors.room)]
    for connection in kept:
        descriptors.keep(connection, 0)
    assert not any(connection.closed for connection in kept)
    descriptors.unkeep(kept[0])
    descriptors.keep(kept[0], 0)
    assert descriptors.admit() is Place.ROOM
    assert descriptors.take()
    descriptors.make_room()
    assert [connection.closed for connection in kept] == [False, True, True] + [False] * (len(kept) - 3)


def test_a_connection_that_nobody_has_used_for_a_while_is_closed() -> None:
    descriptors = Descriptors(LIMIT)
    early, again, late = Kept(), Kept(), Kept()
    descriptors.keep(early, 0)
    descriptors.keep(again, 1)
    descriptors.keep(late, 30)
    descriptors.unkeep(again)
    descriptors.keep(again, 50)
    descriptors.close_unused(59)
    assert not early.closed
    descriptors.close_unused(90)
    assert (early.closed, again.closed, late.closed) == (True, False, True)


def test_a_reserve_grows_with_the_endpoints() -> None:
    descriptors = Descriptors(20_000)
    before = descriptors.room
    descriptors.reserve_for_endpoints(100)
    assert before - 1000 < descriptors.room < before
    assert Descriptors(20_000).room > 19_000


class Sharing(RuleBasedStateMachine):
    """Clients and requests come and go in any order."""

    clients = Bundle("clients")
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = Descriptors(LIMIT)
        self.let_in = self.forwarded = 0

    @rule(target=clients, count=st.integers(1, 40))
    def come(self, count: int) -> list[Place]:
        places = [place for _ in range(count) if (place := self.descriptors.admit()) is not None]
        self.let_in += len(places)
        return places

    @rule(places=consumes(clients))
    def leave(self, places: list[Place]) -> None:
        for place in places:
            self.descriptors.leave(place)
        self.let_in -= len(places)

    @rule(target=requests, count=st.integers(1, 40))
    def forward(self, count: int) -> int:
        taken = sum(self.descriptors.take() for _ in range(count))
        self.forwarded += taken
        return taken

    @rule(count=consumes(requests))
    def end(self, count: int) -> None:
        for _ in range(count):
            self.descriptors.give()
        self.forwarded -= count

    @rule(count=st.integers(1, 40))
    def keep(self, count: int) -> None:
        for _ in range(count):
            self.descriptors.keep(Kept(), 0)

    @invariant()
    def never_more_than_there_are(self) -> None:
        self.descriptors.make_room()
        kept = len(self.descriptors._kept)
        assert self.let_in + self.forwarded + kept <= LIMIT
        assert self.descriptors.requests == self.forwarded
        assert self.descriptors.clients + self.descriptors.requests <= self.descriptors.room


TestSharing = Sharing.TestCase


@given(limit=st.integers(16, 2**20), endpoints=st.integers(0, 1000))
def test_there_is_room_whatever_the_limit(limit: int, endpoints: int) -> None:
    descriptors = Descriptors(limit)
    descriptors.reserve_for_endpoints(endpoints)
    assert descriptors.admit() is Place.ROOM
    assert descriptors.take()
    assert descriptors.room < limit


@pytest.mark.parametrize("limit", [64, 100, 128, 256])
def test_of_few_descriptors_the_process_keeps_what_it_has_open_itself(limit: int) -> None:
    """An engine has 31 at rest, and more while it starts a process that renders templates."""
    descriptors = Descriptors(limit)
    let_in = 0
    while descriptors.admit() is not None:
        let_in += 1
    assert 8 <= let_in <= limit - 40
