"""A client that leaves frees its engine at once, before the first byte and after."""

import asyncio

from tests.router.gateway import CHAT, STREAM, gateway, until
from tests.router.upstream import WORD, Exchange, never, stream_in_two, upstream


async def endless(exchange: Exchange) -> None:
    await exchange.begin_stream()
    while True:
        await exchange.chunk(b"data: {}\n\n")
        await asyncio.sleep(0)


async def one_chunk(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.chunk(b"data: {}\n\n")
    await exchange.connection.gone.wait()


async def test_a_client_that_leaves_before_the_first_byte_frees_the_engine() -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = never
        _, writer = await router.open()
        await until(lambda: len(engine.exchanges) == 1)
        assert router.in_flight == 1
        writer.transport.abort()
        await engine.exchanges[0].connection.gone.wait()
        await until(lambda: router.in_flight == 0)
        await until(lambda: router.router.forwarder.open_requests == 0)
        assert await router.metric('headwater_router_requests_total{status="499"}') == 1


async def test_a_client_that_leaves_a_stream_frees_the_engine() -> None:
    for answer in (one_chunk, endless):
        async with upstream() as engine, gateway(engine) as router:
            engine.answer = answer
            reader, writer = await router.open()
            await reader.readuntil(b"data: {}")
            writer.transport.abort()
            await engine.exchanges[0].connection.gone.wait()
            await until(lambda router=router: router.in_flight == 0)


async def test_a_client_that_has_left_already_is_not_answered() -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = never
        for _ in range(20):
            _, writer = await router.open()
            await writer.drain()
            writer.transport.abort()
        await until(lambda: router.in_flight == 0 and router.router.forwarder.open_requests == 0)
        await until(lambda: engine.post_connections == 0)


async def test_a_request_that_comes_together_with_its_clients_farewell_is_counted_and_given_up() -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = never
        for _ in range(20):
            _, writer = await router.open()
            writer.close()
        async with asyncio.timeout(60):
            while await router.metric('headwater_router_requests_total{status="499"}') < 20:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert router.in_flight == router.router.forwarder.open_requests == 0
        await until(lambda: engine.post_connections == 0)


async def test_clients_that_leave_do_not_open_the_breaker() -> None:
    async with upstream() as engine, gateway(engine, breaker_failures=2) as router:
        engine.answer = never
        for number in range(4):
            _, writer = await router.open()
            await until(lambda number=number: len(engine.exchanges) == number + 1)
            writer.transport.abort()
        await until(lambda: router.in_flight == 0)
        assert await router.metric('headwater_router_endpoint_breaker{endpoint="a"}') == 0


async def test_a_client_that_leaves_takes_no_one_elses_stream_along() -> None:
    release = asyncio.Event()
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = stream_in_two(WORD % b"1", b"data: [DONE]\n\n", release)
        clients = [await router.open(STREAM) for _ in range(8)]
        for reader, _ in clients:
            await reader.readuntil(WORD % b"1")
        for _, writer in clients[::2]:
            writer.transport.abort()
        await until(lambda: router.in_flight == 4)
        release.set()
        for reader, _ in clients[1::2]:
            await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await until(lambda: router.in_flight == 0)


async def test_a_stream_whose_client_reads_on_late_arrives_whole() -> None:
    """Pieces take the short way while the client keeps up, the long way while it does not; none may overtake."""
    count, size, end = 8192, 8192, b"\ndata: [DONE]\n\n"

    async def numbered(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for number in range(count):
            await exchange.chunk((b"%07d" % number).ljust(size, b"."))
        await exchange.chunk(end)
        await exchange.chunk(b"")

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = numbered
        async with router.client.stream("POST", CHAT, content=STREAM) as answer:
            # All buffers on the way are full, and the engine is held back.
            await until(lambda: not engine.exchanges[0].connection.writable.is_set())
            received = await answer.aread()
        received = received.removesuffix(end)
        assert [int(received[at : at + 7]) for at in range(0, len(received), size)] == list(range(count))
