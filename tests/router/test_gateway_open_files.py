"""More clients than descriptors: who comes later waits, in order; nobody fails who need not, and nothing leaks."""

import asyncio
import errno
import socket
from typing import cast

from headwater.http.clients import State
from tests.router.gateway import STREAM, RunningGateway, error_of, gateway, until
from tests.router.upstream import WORD, never, stream_in_two, upstream

OPEN_FILES = 160
"""Half of them is room: 60 clients at most; requests are sent while they and the clients are less than 70."""
FIRST, LAST = WORD % b"1", b"data: [DONE]\n\n"


def numbered(number: int) -> bytes:
    return STREAM + b" " * number


async def open_in_order(router: RunningGateway, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Streams that come one after the other."""
    clients = []
    descriptors = router.router.descriptors
    for number in range(count):
        clients.append(await router.open(numbered(number)))
        await until(lambda number=number: descriptors.requests + descriptors.waiting == number + 1)
    return clients


async def until_all_is_given_back(router: RunningGateway) -> None:
    await router.client.aclose()
    descriptors = router.router.descriptors
    await until(lambda: (descriptors.clients, descriptors.requests, descriptors.waiting) == (0, 0, 0))


async def test_streams_beyond_the_limit_wait_in_order_and_are_all_answered_whole() -> None:
    release = asyncio.Event()
    async with upstream() as engine, gateway(engine, open_files=OPEN_FILES) as router:
        engine.answer = stream_in_two(FIRST, LAST, release)
        clients = await open_in_order(router, 42)
        descriptors = router.router.descriptors
        await until(lambda: len(engine.exchanges) == descriptors.requests)
        assert descriptors.waiting > 5
        assert descriptors.clients + descriptors.requests <= descriptors.room
        release.set()
        for reader, writer in clients:
            await reader.readuntil(LAST + b"\r\n0\r\n\r\n")
            writer.close()
        lengths = [len(exchange.body) for exchange in engine.exchanges]
        asked = len(b'"stream_options":{"include_usage":true},')
        assert lengths == [len(numbered(number)) + asked for number in range(42)]
        assert await router.metric('headwater_router_requests_total{status="200"}') == 42
        await until_all_is_given_back(router)
        await until(lambda: router.in_flight == 0)


async def test_who_waited_too_long_is_told_to_come_back() -> None:
    async with upstream() as engine, gateway(engine, open_files=OPEN_FILES, connection_wait=0) as router:
        engine.answer = never
        descriptors = router.router.descriptors
        clients = []
        while descriptors.clients + descriptors.requests < 70:
            clients.append(await router.open())
            await until(lambda: len(engine.exchanges) == len(clients))
        answer = await router.post()
        assert (answer.status_code, error_of(answer)["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        for _, writer in clients:
            writer.transport.abort()
        await until_all_is_given_back(router)


async def test_a_client_that_leaves_while_it_waits_is_given_up() -> None:
    async with upstream() as engine, gateway(engine, open_files=OPEN_FILES) as router:
        engine.answer = never
        clients = await open_in_order(router, 42)
        waiting = router.router.descriptors.waiting
        clients[-1][1].transport.abort()
        await until(lambda: router.router.descriptors.waiting == waiting - 1)
        sent = len(engine.exchanges)
        for _, writer in reversed(clients[:-1]):
            writer.transport.abort()
        await until_all_is_given_back(router)
        # Whoever waited left before those who were served; at most the last of them was still sent.
        assert len(engine.exchanges) <= sent + 1


async def test_health_and_metrics_are_answered_when_no_client_finds_room() -> None:
    async with upstream() as engine, gateway(engine, open_files=OPEN_FILES) as router:
        engine.answer = never
        clients = await open_in_order(router, 45)
        for path in ("/health", "/metrics", "/ready"):
            answer = await router.client.get(path)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        refused = await router.post()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        for _, writer in clients:
            writer.transport.abort()
        await until_all_is_given_back(router)


async def test_when_the_anteroom_is_full_newcomers_wait_to_be_accepted() -> None:
    async with upstream() as engine, gateway(engine, open_files=OPEN_FILES) as router:
        server = router.router.server
        silent = [
            await asyncio.open_connection("127.0.0.1", router.port, local_addr=(f"127.0.0.{2 + number % 2}", 0))
            for number in range(60 + 32)
        ]
        await until(lambda: len(server.clients.open) == 92)
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
        await until(lambda: server.paused)
        assert len(server.clients.open) == 92
        silent.pop()[1].close()
        assert (await reader.read()).endswith(b'{"status":"ok"}')
        for _, other in [*silent, (reader, writer)]:
            other.close()
        await until_all_is_given_back(router)


async def test_idle_clients_leave_early_when_others_wait() -> None:
    async with upstream() as engine, gateway(engine, open_files=OPEN_FILES) as router:
        engine.answer = never
        idle = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(8)]
        clients = router.router.server.clients
        since = clients.since[State.IDLE]
        await until(lambda: len(since) == 8)
        clients.tick(min(since.values()) + 6)
        assert len(clients.open) == 8
        last = max(since.values())
        streams = await open_in_order(router, 36)
        waiting = router.router.descriptors.waiting
        assert waiting > 0
        clients.tick(last + 6)
        for reader, writer in idle:
            assert await reader.read() == b""
            writer.close()
        await until(lambda: router.router.descriptors.waiting < waiting)
        for _, writer in streams:
            writer.transport.abort()
        await until_all_is_given_back(router)


async def test_kept_connections_to_one_endpoint_give_way_to_requests_for_another() -> None:
    all_there = asyncio.Event()
    async with upstream("m") as one, upstream("n") as two, gateway(one, two, open_files=OPEN_FILES) as router:
        one.answer = two.answer = stream_in_two(FIRST, LAST, all_there)
        for engine, body in ((one, STREAM), (two, STREAM.replace(b'"m"', b'"n"'))):
            all_there.clear()
            answers = [asyncio.create_task(router.post(body)) for _ in range(35)]
            await until(lambda engine=engine: len(engine.exchanges) == 35)
            all_there.set()
            assert {(await answer).status_code for answer in answers} == {200}
        # 35 clients, 35 connections to the second endpoint, and what is left of those to the first.
        await until(lambda: len(router.router.server.clients.open) + one.post_connections + two.post_connections <= 80)
        await until_all_is_given_back(router)


class Exhausted:
    """A listening socket of a system that has no descriptor left."""

    def accept(self) -> tuple[socket.socket, object]:
        raise OSError(errno.EMFILE, "Too many open files")


async def test_a_system_that_refuses_to_accept_is_asked_again_later() -> None:
    async with upstream() as engine, gateway(engine) as router:
        server = router.router.server
        await until(lambda: not server.clients.open or bool(server.clients.since[State.IDLE]))
        before = router.router.descriptors.clients
        server._accept(cast("socket.socket", Exhausted()))
        assert server.paused
        assert router.router.descriptors.clients == before
        # The next look at idle connections makes the server listen again.
        assert (await router.client.get("/health")).status_code == 200
