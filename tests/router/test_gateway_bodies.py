"""The memory of requests: counted while it is held, bounded by what the container has, and all of it given back."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headwater_router.app import Router
from headwater_router.config import RouterSettings
from headwater_router.descriptors import Descriptors
from headwater_router.gateway.bodies import BodyBudget
from headwater_router.gateway.connection import ClientConnection
from headwater_router.gateway.request import Request
from headwater_router.memory import memory_limit
from tests.router.front import Counted, front, post, read_answer
from tests.router.gateway import until

MIB = 2**20


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
