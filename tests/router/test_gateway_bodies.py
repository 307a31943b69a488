"""The memory of requests: counted while it is held, bounded by what the container has, and all of it given back."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headwater.http.bodies import BodyBudget
from headwater.http.clients import State
from headwater.http.connection import ClientConnection
from headwater.http.descriptors import Descriptors
from headwater.http.request import Request
from headwater.memory import memory_limit
from headwater_router.app import Router
from headwater_router.config import RouterSettings
from tests.router.front import Counted, Front, front, post, read_answer
from tests.router.gateway import until

MIB = 2**20

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def test_a_containers_limit_counts_where_it_is_less_than_the_machine_has(tmp_path: Path) -> None:
    whole = memory_limit(tmp_path)
    assert whole > 64 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == whole
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert memory_limit(tmp_path) == whole
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{64 * MIB}\n")
    assert memory_limit(tmp_path) == 64 * MIB
    (tmp_path / "memory.max").write_text(f"{32 * MIB}\n")
    assert memory_limit(tmp_path) == 32 * MIB


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 250), ({"max_bodies_mib": 40}, 40), ({"max_bodies_mib": 5}, 32), ({"max_body_mib": 300}, 300)],
)
async def test_the_limit_follows_from_the_memory_unless_it_is_set_and_one_body_always_fits(
    settings: dict[str, float], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater_router.app.memory_limit", lambda: 1000 * MIB)
    router = Router(RouterSettings(endpoint=["http://127.0.0.1:1"], **settings), Descriptors(1000))  # type: ignore[arg-type]
    assert router.server.clients.bodies.limit == limit * MIB


class Requests(RuleBasedStateMachine):
    """Requests come in pieces, drop their bodies and end, in any order, and some twice."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = BodyBudget(1000)
        self.door = Counted()
        self.open: list[Request] = []
        self.ended: list[Request] = []

    @rule()
    def come(self) -> None:
        request = Request(b"1", b"POST", b"/", "/", [(b"a", b"b")], "10.0.0.7", self.budget, keep_alive=True)
        request.admitted = self.door
        self.door.taken += 1
        self.open.append(request)

    @rule(number=st.integers(0, 50), count=st.integers(0, 400), head=st.booleans())
    def hold(self, number: int, count: int, head: bool) -> None:
        if self.open:
            request, before = self.open[number % len(self.open)], self.budget.in_flight
            took = request.hold_head() if head else request.hold_body(count)
            assert took or self.budget.in_flight == before

    @rule(number=st.integers(0, 50))
    def drop(self, number: int) -> None:
        if self.open:
            request = self.open[number % len(self.open)]
            request.drop_body()
            assert (request.body, request.held_body) == (b"", 0)

    @rule(number=st.integers(0, 50), again=st.booleans())
    def end(self, number: int, again: bool) -> None:
        if again and self.ended:
            self.ended[number % len(self.ended)].end()
        elif self.open:
            request = self.open.pop(number % len(self.open))
            request.end()
            self.ended.append(request)

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        held = sum(request.held_head + request.held_body for request in self.open)
        assert self.budget.in_flight == held <= 1000
        assert self.door.given == len(self.ended)


TestRequests = Requests.TestCase


@dataclass(eq=False)
class Sender:
    """Sends a body whenever it is read from."""

    budget: BodyBudget
    missing: int
    held: int = 0
    reading: bool = True

    def go_on(self) -> None:
        self.reading = True

    def look_at_turn(self, now: float) -> None:
        self.reading = False
        self.budget.wait(self)


class Senders(RuleBasedStateMachine):
    """Bodies come in pieces, are answered, and their clients leave, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = BodyBudget(1000)
        self.sending: list[Sender] = []
        self.whole: list[Sender] = []

    @rule(size=st.integers(1, 600))
    def come(self, size: int) -> None:
        self.sending.append(Sender(self.budget, size))

    @rule(number=st.integers(0, 50), count=st.integers(1, 100))
    def send(self, number: int, count: int) -> None:
        reading = [sender for sender in self.sending if sender.reading]
        if not reading:
            return
        sender = reading[number % len(reading)]
        if not self.budget.take(count := min(count, sender.missing)):
            self.leave(self.sending.index(sender))
            return
        sender.missing -= count
        sender.held += count
        if not sender.missing:
            self.sending.remove(sender)
            self.whole.append(sender)
            self.budget.leave(sender)
        elif self.budget.must_wait(sender):
            sender.reading = False
            self.budget.wait(sender)

    @rule(number=st.integers(0, 50))
    def leave(self, number: int) -> None:
        if self.sending:
            sender = self.sending.pop(number % len(self.sending))
            self.budget.leave(sender)
            self.budget.give(sender.held)

    @rule(number=st.integers(0, 50))
    def answer(self, number: int) -> None:
        if self.whole:
            self.budget.give(self.whole.pop(number % len(self.whole)).held)

    @rule()
    def tick(self) -> None:
        self.budget.tick(0.0)

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        assert self.budget.in_flight == sum(sender.held for sender in (*self.sending, *self.whole)) <= 1000

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        waiting = [sender for sender in self.sending if not sender.reading]
        assert len(waiting) == self.budget.waiting
        if waiting and self.budget.in_flight <= 750:
            assert len(waiting) < len(self.sending), "one has its turn"


TestSenders = Senders.TestCase


async def test_bodies_wait_for_memory_and_all_of_them_are_answered() -> None:
    held = asyncio.Semaphore(0)

    async def handle(request: Request, client: ClientConnection) -> None:
        await held.acquire()
        client.answer(request.error.status if request.error else 200, [], b"")

    async with front(handle, limit=16 * MIB) as running:
        bodies = running.server.clients.bodies
        connections = [await running.connect() for _ in range(32)]
        for _, writer in connections:
            # 22 MB in all; no more than fits where each has sent a piece of 256 KiB before it can be told to wait.
            writer.write(post(b"x" * 700_000))
        await until(lambda: bodies.waiting > 0)
        await until(lambda: len(running.requests) > 5)
        for _ in connections:
            held.release()
        answers = [(await read_answer(reader))[0] for reader, _ in connections]
        assert answers == [200] * len(connections)
        await until(lambda: not bodies.crowded)
        assert bodies.in_flight == 0


async def one_has_its_turn_and_one_waits(running: Front) -> tuple[Connection, Connection]:
    """The first has sent all of its body but a byte, and the second all of it."""
    bodies = running.server.clients.bodies
    first, second = await running.connect(), await running.connect()
    body = b"x" * 400_000
    first[1].write(post(body)[:-1])
    await until(lambda: bodies.crowded and bodies.waiting == 0)
    second[1].write(post(body))
    await until(lambda: bodies.waiting == 1)
    return first, second


async def test_who_uses_its_turn_too_little_stands_in_the_line_again() -> None:
    async with full() as running:
        slow, quick = await one_has_its_turn_and_one_waits(running)
        running.tick(2)
        assert (await read_answer(quick[0]))[0] == 200
        slow[1].write(b"x")
        assert (await read_answer(slow[0]))[0] == 200


async def test_who_waits_for_memory_in_vain_is_told_to_come_back() -> None:
    async with full() as running:
        slow, other = await one_has_its_turn_and_one_waits(running)
        [connection] = running.server.clients.since[State.WAITING]
        connection.time_is_up(0.0)
        status, _, answer = await read_answer(other[0])
        assert (status, json.loads(answer)["error"]["code"]) == (503, "overloaded")
        slow[1].transport.abort()
        await until(lambda: not running.server.clients.bodies.crowded)


async def test_a_client_that_leaves_while_it_waits_or_has_its_turn_makes_room_for_the_next() -> None:
    async with full() as running:
        bodies = running.server.clients.bodies
        slow, gone, last = [await running.connect() for _ in range(3)]
        body = b"x" * 400_000
        slow[1].write(post(body)[:-1])
        await until(lambda: bodies.crowded and bodies.waiting == 0)
        for number, (_, writer) in enumerate((gone, last)):
            writer.write(post(body))
            await until(lambda count=number + 1: bodies.waiting == count)  # type: ignore[misc]
        for _, writer in (gone, slow):
            writer.transport.abort()
        assert (await read_answer(last[0]))[0] == 200
        await until(lambda: not bodies.crowded)


@asynccontextmanager
async def full() -> AsyncIterator[Front]:
    """Half of the memory is taken, by a request that is not answered before the end."""
    go_on = asyncio.Event()

    async def handle(request: Request, client: ClientConnection) -> None:
        if request.path == "/keeps":
            await go_on.wait()
        if request.error is None:
            client.answer(200, [], b"")
        else:
            client.answer(request.error.status, [], json.dumps(request.error.body()).encode())

    async with front(handle, limit=8 * MIB) as running:
        reader, writer = await running.connect()
        writer.write(post(b"x" * (4 * MIB - 1000), path="/keeps"))
        await until(lambda: len(running.requests) == 1)
        yield running
        go_on.set()
        assert (await read_answer(reader))[0] == 200


async def test_a_body_is_held_until_its_answer_has_ended_or_its_handler_drops_it() -> None:
    dropped, go_on = asyncio.Event(), asyncio.Event()

    async def handle(request: Request, client: ClientConnection) -> None:
        if request.path == "/drops":
            request.drop_body()
            dropped.set()
        await go_on.wait()
        client.answer(200, [], b"ok")

    async with front(handle) as running:
        bodies = running.server.clients.bodies
        reader, writer = await running.connect()
        writer.write(post(b"x" * 1000, path="/keeps"))
        await until(lambda: len(running.requests) == 1)
        assert bodies.in_flight == 1000
        other, other_writer = await running.connect()
        other_writer.write(post(b"x" * 500, path="/drops"))
        await dropped.wait()
        assert bodies.in_flight == 1000
        go_on.set()
        for each in (reader, other):
            assert (await read_answer(each))[2] == b"ok"
        await until(lambda: bodies.in_flight == 0)


async def test_requests_that_wait_for_their_turn_count_with_their_heads() -> None:
    go_on = asyncio.Event()

    async def handle(request: Request, client: ClientConnection) -> None:
        await go_on.wait()
        client.answer(request.error.status if request.error else 200, [], b"")

    async with front(handle, limit=1500) as running:
        reader, writer = await running.connect()
        writer.write(post(b"x" * 500) * 5)
        [connection] = await _connections(running.server.clients.open)
        await until(lambda: len(connection._queue) == 4)
        bodies = running.server.clients.bodies
        held = [request.held_head + request.held_body for request in connection._queue]
        assert held[0] > 500 + 256
        assert sum(held) + 500 == bodies.in_flight <= 1500
        go_on.set()
        statuses = [(await read_answer(reader))[0] for _ in range(5)]
        assert (statuses[:2], set(statuses)) == ([200, 200], {200, 503})
        await until(lambda: bodies.in_flight == 0)
        assert running.requests[-1].body == b""
        writer.close()


async def test_a_client_that_leaves_gives_back_what_it_had_sent_wherever_that_was() -> None:
    async def handle(request: Request, client: ClientConnection) -> None:
        await asyncio.Event().wait()

    door = Counted()
    async with front(handle, admit=door) as running:
        _reader, writer = await running.connect()
        # One is being answered, one waits for its turn, and one is still on its way.
        writer.write(post(b"x" * 100) * 3 + post(b"x" * 100)[:-50])
        bodies = running.server.clients.bodies
        await until(lambda: door.taken == 4 and bodies.in_flight >= 350)
        writer.transport.abort()
        await until(lambda: bodies.in_flight == 0)
        assert door.given == 4
        assert len(running.requests) == 1


async def _connections(opened: set[ClientConnection]) -> list[ClientConnection]:
    await until(lambda: len(opened) == 1)
    return list(opened)
