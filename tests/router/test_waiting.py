"""Requests wait at the router while all endpoints are full, and go as soon as one is not, whatever happens."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.virtual_clock import VirtualLoop, run
from headwater.openai.errors import APIError
from headwater_router.admission.ceiling import Report
from headwater_router.admission.room import WaitReason
from headwater_router.dispatch.call import Call
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.outcome import Outcome
from tests.router.dispatching import MODEL, Dispatching

PLACES = 3
"""Of each engine; beyond, it turns requests down."""


@dataclass(slots=True, eq=False)
class Client:
    call: Call
    task: "asyncio.Task[None]"
    answer: "asyncio.Future[None]"
    error: APIError | None = None

    @property
    def waits(self) -> bool:
        return not self.task.done() and (not self.call.stays or self.call.stays[-1].outcome is not None)


@dataclass(slots=True, eq=False)
class Play:
    """Clients before a dispatcher, and engines that run so many requests each, in virtual time."""

    fake: Dispatching
    clients: list[Client] = field(default_factory=list)
    turned_down: int = 0

    @classmethod
    def of(cls, engines: int, **options: object) -> "Play":
        loop = asyncio.get_running_loop()
        return cls(Dispatching(engines, clock=loop.time, **options))  # type: ignore[arg-type]

    @property
    def waiting(self) -> dict[WaitReason, int]:
        return self.fake.dispatcher.room.waiting()

    def running(self, endpoint: Endpoint) -> int:
        return sum(
            not client.task.done() and bool(client.call.stays) and client.call.stays[-1].endpoint is endpoint
            and client.call.stays[-1].outcome is None
            for client in self.clients
        )  # fmt: skip

    async def come(self, tokens: int = 100) -> Client:
        await asyncio.sleep(0.001)  # No two at the same time: then who was turned down would go behind the other.
        call = self.fake.call(b"{%d}" % len(self.clients))
        call.prompt.tokens = tokens
        client = Client(call, None, asyncio.get_running_loop().create_future())  # type: ignore[arg-type]
        client.task = asyncio.create_task(self._serve(client))
        self.clients.append(client)
        await self.settle()
        return client

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def answer(self, client: Client) -> None:
        client.answer.set_result(None)
        await self.settle()

    async def leave(self, client: Client) -> None:
        client.task.cancel()
        await self.settle()

    async def _serve(self, client: Client) -> None:
        dispatcher, call = self.fake.dispatcher, client.call
        try:
            while True:
                dispatch = await dispatcher.choose(call)
                if self.running(dispatch.endpoint) <= PLACES:
                    break
                self.turned_down += 1
                again = await dispatcher.may_retry(call, Outcome.OVERLOADED)
                dispatch.ended(Outcome.OVERLOADED, self.fake.time())
                if not again:
                    return
            await client.answer
            self.fake.answer(dispatch, 0.0)
        except APIError as error:
            client.error = error
        finally:
            dispatcher.close(call, self.fake.time(), Outcome.CLIENT_LEFT)


def tell(play: Play, endpoint: Endpoint, **gauges: int) -> None:
    """Its gauges are read."""
    endpoint.targets[0].load.report(Report(**gauges))
    play.fake.fleet.on_report(endpoint)


def play(test: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        await test()

    run(within(), VirtualLoop())


steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "come", "answer", "answer", "leave", "pass", "report", "down", "up"]),
        st.integers(0, 1000),
    ),
    max_size=60,
)


@given(steps=steps, engines=st.integers(1, 3), connections=st.sampled_from([20_000, 40]))
@settings(max_examples=60)
def test_nobody_waits_while_there_is_room_and_everybody_gets_an_answer(
    steps: list[tuple[str, int]], engines: int, connections: int
) -> None:
    async def scenario() -> None:
        it = Play.of(engines, queue=8, hold=4, connections=connections)
        endpoints, dispatcher = it.fake.endpoints, it.fake.dispatcher
        for step, number in steps:
            endpoint = endpoints[number % engines]
            open_ = [client for client in it.clients if not client.task.done()]
            match step:
                case "come":
                    await it.come(tokens=100 + number)
                case "answer" if running := [client for client in open_ if not client.waits]:
                    await it.answer(running[number % len(running)])
                case "leave" if open_:
                    await it.leave(open_[number % len(open_)])
                case "pass":
                    await asyncio.sleep(number / 100)
                case "report" if endpoint.ready:
                    tell(it, endpoint, running=it.running(endpoint), waiting=0, most_running=number % 5)
                case "down":
                    it.fake.fleet.mark_unready(endpoint, "away")
                case "up":
                    it.fake.fleet.mark_ready(endpoint, [MODEL])
            await it.settle()
            if it.waiting[WaitReason.FULL]:
                for each in endpoints:
                    load = each.targets[0].load
                    busy = dispatcher.candidates.is_busy(each)
                    assert not each.ready or busy or not load.ceiling.has_room(load.there, load.kv_tokens)
            if it.waiting[WaitReason.NOT_READY]:
                assert not any(each.ready for each in endpoints)
        for each in endpoints:
            it.fake.fleet.mark_ready(each, [MODEL])
        for client in it.clients:
            if not client.answer.done():
                client.answer.set_result(None)
        await asyncio.wait_for(asyncio.gather(*(client.task for client in it.clients), return_exceptions=True), 3600)
        assert it.waiting == dict.fromkeys(WaitReason, 0)
        assert sum(each.in_flight for each in endpoints) == 0
        assert sum(each.targets[0].load.kv_tokens for each in endpoints) == 0
        assert it.fake.descriptors.requests == 0
        for client in it.clients:
            last = client.call.stays[-1].outcome if client.call.stays else None
            assert client.task.cancelled() or client.error or last in (Outcome.ANSWERED, Outcome.OVERLOADED)

    play(scenario)


def test_beyond_what_an_engine_runs_requests_wait_and_go_one_by_one() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=20)
        first = await it.come()
        tell(it, it.fake.endpoints[0], running=1, waiting=0, most_running=1)
        others = [await it.come() for _ in range(5)]
        assert it.waiting[WaitReason.FULL] == 3, "one runs, two may wait in the engine"
        await it.answer(first)
        assert it.waiting[WaitReason.FULL] == 2
        assert not others[2].waits, "the first to come"
        for client in others:
            await it.answer(client)
        assert it.turned_down == 0
        assert not it.waiting[WaitReason.FULL]

    play(scenario)


def test_what_engines_turn_down_waits_until_something_is_answered() -> None:
    """They say nothing of themselves but 429."""

    async def scenario() -> None:
        it = Play.of(2, queue=50, queue_seconds=600.0)
        clients = [await it.come() for _ in range(20)]
        await asyncio.sleep(30)
        assert it.waiting[WaitReason.FULL] == 14
        before = it.turned_down
        for client in clients:
            while client.waits:  # noqa: ASYNC110
                await asyncio.sleep(1)
            await it.answer(client)
            await asyncio.sleep(2)
        assert all(client.call.stays[-1].outcome is Outcome.ANSWERED for client in clients)
        assert it.turned_down - before <= 14

    play(scenario)


def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=1)
        running = [await it.come() for _ in range(3)]
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        waits = await it.come()
        refused = await it.come()
        assert (refused.error.status, refused.error.code, refused.error.retry_after) == (503, "endpoints_full", 5)
        await it.leave(waits)
        assert it.waiting[WaitReason.FULL] == 0
        another = await it.come()
        assert another.waits
        await it.leave(running[1])
        assert not another.waits, "its place in the engine goes to who waits"

    play(scenario)


def test_who_leaves_in_the_moment_of_its_turn_gives_it_back() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=5)
        running = [await it.come() for _ in range(3)]
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        waits = await it.come()
        running[0].answer.set_result(None)
        await asyncio.sleep(0)
        waits.task.cancel()  # It was sent within that call, and its task does not know yet.
        await it.settle()
        assert it.fake.endpoints[0].targets[0].load.in_flight == 2
        assert it.fake.descriptors.requests == 2

    play(scenario)


def test_a_request_waits_so_long_and_no_longer() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=5, queue_seconds=7.0)
        for _ in range(3):
            await it.come()
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        client = await it.come()
        began = client.call.started
        await asyncio.wait([client.task])
        assert it.fake.time() - began == pytest.approx(7.0)
        assert (client.error.status, client.error.code, client.error.retry_after) == (503, "endpoints_full", 10)
        assert it.waiting[WaitReason.FULL] == 0

    play(scenario)


def test_who_could_not_go_in_time_is_told_so_at_once_and_when_to_come_again() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=1000, queue_seconds=7.0)
        for _ in range(100):  # answers that take 4 seconds
            client = await it.come()
            await asyncio.sleep(4.0)
            await it.answer(client)
        running = [await it.come() for _ in range(3)]
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        came = [await it.come() for _ in range(10)]
        waiting = [client for client in came if client.waits]
        # Three run, and one ends each 4/3 seconds: so the sixth would have its turn after 8.
        assert len(waiting) == 5
        error = came[5].error
        assert (error.status, error.code) == (503, "endpoints_full")
        assert "within 7 seconds" in str(error)
        assert error.retry_after == pytest.approx(1.0)
        assert came[9].error.retry_after == pytest.approx(1.0), (
            "as many wait as before: no one is counted who went away"
        )
        for client in [*running, *waiting]:
            await asyncio.sleep(4 / 3)
            await it.answer(client)
        assert all(client.error is None for client in waiting), "whoever was let in had its turn in time"

    play(scenario)


def test_as_many_as_run_may_always_wait() -> None:
    """However long answers take: one of those that run may end at any time."""

    async def scenario() -> None:
        it = Play.of(1, queue=1000, queue_seconds=7.0)
        for _ in range(100):
            client = await it.come()
            await asyncio.sleep(600.0)
            await it.answer(client)
        for _ in range(3):
            await it.come()
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        assert [(await it.come()).waits for _ in range(5)] == [True, True, True, False, False]

    play(scenario)


def test_time_that_was_waited_is_not_the_engines() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=5)
        for _ in range(3):
            await it.come()
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        client = await it.come()
        await asyncio.sleep(20)
        await it.answer(it.clients[0])
        assert client.call.deadline == pytest.approx(it.fake.time() + 600.0)
        assert client.call.waited[WaitReason.FULL] == pytest.approx(20.0)

    play(scenario)


def test_where_all_die_requests_wait_for_one_to_get_ready_with_that_patience() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=5, hold=5)
        it.fake.promise()
        for _ in range(3):
            await it.come()
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        client = await it.come()
        it.fake.fleet.mark_unready(it.fake.endpoints[0], "away")
        assert it.waiting == {WaitReason.NOT_READY: 1, WaitReason.FULL: 0, WaitReason.NO_CONNECTION: 0}
        await asyncio.sleep(100)
        assert client.waits, "longer than it would wait for room"
        it.fake.fleet.mark_ready(it.fake.endpoints[0], [MODEL])
        assert it.waiting[WaitReason.FULL] == 1

    play(scenario)


def test_who_finds_no_descriptor_waits_for_one_in_order() -> None:
    async def scenario() -> None:
        it = Play.of(20, connections=40)
        clients = [await it.come() for _ in range(30)]
        waiting = [client for client in clients if client.waits]
        assert it.waiting[WaitReason.NO_CONNECTION] == len(waiting) > 5
        assert it.fake.descriptors.crowded
        await it.leave(waiting[1])
        for client in clients[:3]:
            await it.answer(client)
        assert [client.waits for client in waiting[:5]] == [False, False, False, False, True]
        assert it.fake.descriptors.requests == 30 - len(waiting)

    play(scenario)


def test_a_request_that_waits_once_more_gives_its_descriptor_to_others() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=5)
        for _ in range(PLACES):
            await it.come()
        late = await it.come()
        await asyncio.sleep(10)
        assert [each.outcome for each in late.call.stays] == [Outcome.OVERLOADED]
        assert it.waiting[WaitReason.FULL] == 1
        assert it.fake.descriptors.requests == PLACES

    play(scenario)


def test_a_router_that_ends_sends_all_away() -> None:
    async def scenario() -> None:
        it = Play.of(1, queue=5)
        for _ in range(3):
            await it.come()
        tell(it, it.fake.endpoints[0], running=1, waiting=2, most_running=1)
        waits = await it.come()
        it.fake.dispatcher.room.drain()
        await it.settle()
        late = await it.come()
        assert [each.error.code for each in (waits, late)] == ["draining", "draining"]  # type: ignore[union-attr]

    play(scenario)


def test_without_a_queue_all_is_sent_at_once() -> None:
    async def scenario() -> None:
        it = Play.of(1)
        tell(it, it.fake.endpoints[0], running=1, waiting=0, most_running=1)
        clients = [await it.come() for _ in range(20)]
        assert Counter(client.task.done() for client in clients) == {False: PLACES, True: 20 - PLACES}
        assert it.turned_down == 20 - PLACES

    play(scenario)
