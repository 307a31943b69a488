"""Requests that wait at the gateway for engines that are full: by their gauges, or since they turned some down."""

import asyncio

import httpx

from headwater_router.admission.room import WaitReason
from tests.router.gateway import BODY, RunningGateway, error_of, gateway, until
from tests.router.upstream import JSON, WORD, Exchange, Upstream, never, stream_in_two, upstream

WAITING = 'headwater_router_waiting{reason="full"}'
FIRST, LAST = WORD % b"1", b"data: [DONE]\n\n"


def runs(engine: Upstream, most: int, running: int = 0, waiting: int = 0) -> None:
    """What its page says, as SGLang's does."""
    gauges = {"num_running_reqs": running, "num_queue_reqs": waiting, "max_running_requests": most}
    engine.serve_metrics("".join(f"sglang:{name} {value}\n" for name, value in gauges.items()))


def waiting(router: RunningGateway) -> int:
    return router.router.dispatcher.room.waiting()[WaitReason.FULL]


async def until_read(router: RunningGateway, places: int) -> None:
    await until(lambda: all(each.targets[0].load.ceiling.places == places for each in router.router.fleet))


async def send(router: RunningGateway, count: int) -> list[asyncio.Task[httpx.Response]]:
    """One after the other; each is sent, or waits."""
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(router.post(BODY + b" " * number)))
        await until(lambda number=number: router.in_flight + waiting(router) == number + 1)
    return tasks


async def test_what_is_beyond_the_engines_places_waits_and_goes_in_order() -> None:
    release = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await release.wait()
        await exchange.whole()

    async with upstream() as engine, gateway(engine, backend="sglang", queue_requests=10) as router:
        engine.answer = hold
        runs(engine, most=1)
        await until_read(router, 1)
        tasks = await send(router, 8)
        assert (len(engine.exchanges), waiting(router)) == (3, 5)
        assert await router.metric(WAITING) == 5
        release.set()
        assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 8
        assert [len(exchange.body) - len(BODY) for exchange in engine.exchanges] == list(range(8))
        assert await router.metric('headwater_router_waits_total{outcome="sent",reason="full"}') == 5
        assert await router.metric('headwater_router_waited_seconds_count{reason="full"}') == 5
        assert await router.metric(WAITING) == 0


async def test_one_too_many_is_told_when_to_come_back_and_who_leaves_makes_room() -> None:
    async with upstream() as engine, gateway(engine, backend="sglang", queue_requests=2) as router:
        engine.answer = never
        runs(engine, most=1)
        await until_read(router, 1)
        tasks = await send(router, 5)
        refused = await router.post()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "endpoints_full")
        assert refused.headers["retry-after"] == "5"
        tasks[-1].cancel()
        await until(lambda: waiting(router) == 1)
        tasks[0].cancel()
        await until(lambda: waiting(router) == 0)
        assert await router.metric('headwater_router_waits_total{outcome="left",reason="full"}') == 1
        for task in tasks:
            task.cancel()
        await until(lambda: router.in_flight == 0)


async def test_whoever_waits_too_long_is_told_so() -> None:
    async with upstream() as engine, gateway(engine, backend="sglang", queue_requests=2, queue_seconds=0.01) as router:
        engine.answer = never
        runs(engine, most=1)
        await until_read(router, 1)
        tasks = await send(router, 3)
        late = await router.post()
        assert (late.status_code, error_of(late)["code"], late.headers["retry-after"]) == (503, "endpoints_full", "10")
        for task in tasks:
            task.cancel()


async def test_nothing_waits_while_another_engine_has_room() -> None:
    release = asyncio.Event()
    async with upstream() as a, upstream() as b, gateway(a, b, backend="sglang", queue_requests=10) as router:
        for engine, most in ((a, 1), (b, 40)):
            engine.answer = stream_in_two(FIRST, LAST, release)
            runs(engine, most)
        await until(lambda: {each.targets[0].load.ceiling.places for each in router.router.fleet} == {1, 40})
        clients = []
        for number in range(30):
            clients.append(await router.open())
            await until(lambda number=number: len(a.exchanges) + len(b.exchanges) == number + 1)
        assert len(a.exchanges) == 3
        release.set()
        for reader, writer in clients:
            await reader.readuntil(LAST + b"\r\n0\r\n\r\n")
            writer.close()


async def test_what_an_engine_turned_down_is_sent_again_when_something_has_ended() -> None:
    """It has no gauges, and says 429 beyond two requests."""
    release, running = asyncio.Event(), 0

    async def serve(exchange: Exchange) -> None:
        nonlocal running
        if running == 2:
            await exchange.whole(b"{}", 429, JSON)
            return
        running += 1
        await release.wait()
        running -= 1
        await exchange.whole()

    async with upstream() as engine, gateway(engine, queue_requests=20) as router:
        engine.answer = serve
        tasks = [asyncio.create_task(router.post()) for _ in range(12)]
        await until(lambda: waiting(router) == 10)
        release.set()
        assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 12


async def test_a_report_of_more_places_lets_go_who_waits() -> None:
    async with upstream() as engine, gateway(engine, backend="sglang", queue_requests=10) as router:
        engine.answer = never
        runs(engine, most=1)
        await until_read(router, 1)
        tasks = await send(router, 6)
        assert waiting(router) == 3
        runs(engine, most=8, running=3)
        await until(lambda: waiting(router) == 0)
        for task in tasks:
            task.cancel()
