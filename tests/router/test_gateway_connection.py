"""A client's connection: order, keep-alive, and how answers are told for each version and method of HTTP."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter

import pytest

from headwater.http.clients import State
from tests.router.gateway import BODY, CHAT, STREAM, RunningGateway, gateway, until
from tests.router.upstream import OK, WORD, Exchange, never, stream_in_two, upstream


async def connect(router: RunningGateway) -> tuple[StreamReader, StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", router.port)


def post(body: bytes = BODY, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {CHAT} HTTP/{version}", "host: gateway", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def read_answer(reader: StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Of one whose length is told."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def in_order(exchange: Exchange) -> None:
    """The first answer is the last one to be ready, if they are computed at once."""
    await exchange.whole(b"%d" % len(exchange.body))


async def test_requests_sent_without_waiting_are_answered_in_order() -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = in_order
        reader, writer = await connect(router)
        bodies = [BODY + b" " * number for number in range(5)]
        writer.write(
            b"".join(map(post, bodies[:3])) + b"GET /health HTTP/1.1\r\n\r\n" + b"".join(map(post, bodies[3:]))
        )
        answers = [(await read_answer(reader))[2] for _ in range(6)]
        lengths = [b"%d" % len(body) for body in bodies]
        assert answers == [*lengths[:3], b'{"status":"ok"}', *lengths[3:]]
        writer.close()


async def test_a_client_that_leaves_takes_along_what_it_sent_without_waiting() -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = never
        _, writer = await connect(router)
        writer.write(post() + post())
        await until(lambda: len(engine.exchanges) == 1)
        writer.transport.abort()
        await engine.exchanges[0].connection.gone.wait()
        await until(lambda: router.router.forwarder.open_requests == 0)
        assert len(engine.exchanges) == 1


async def test_what_is_malformed_is_answered_in_its_turn_and_in_openais_shape() -> None:
    async with upstream() as engine, gateway(engine) as router:
        reader, writer = await connect(router)
        writer.write(post() + b"this is no HTTP\r\n\r\n")
        assert (await read_answer(reader))[0] == 200
        status, headers, body = await read_answer(reader)
        assert (status, headers["connection"]) == (400, "close")
        assert json.loads(body)["error"]["code"] == "invalid_http"
        assert await reader.read() == b""
        writer.close()


async def test_a_head_request_gets_the_head_alone() -> None:
    async with upstream() as engine, gateway(engine) as router:
        reader, writer = await connect(router)
        writer.write(b"HEAD /health HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 15\r\n" in head
        assert (await read_answer(reader))[2] == b'{"status":"ok"}'
        writer.close()


async def test_a_client_that_waits_before_its_body_is_told_to_send_it() -> None:
    async with upstream() as engine, gateway(engine) as router:
        release = asyncio.Event()
        engine.answer = stream_in_two(WORD % b"1", b"data: [DONE]\n\n", release)
        reader, writer = await connect(router)
        head, body = post(BODY, "expect: 100-continue").split(b"\r\n\r\n")
        # Behind a request that is still being answered, it is told so when that answer is whole.
        writer.write(post(STREAM) + head + b"\r\n\r\n")
        await reader.readuntil(WORD % b"1" + b"\r\n")
        release.set()
        await reader.readuntil(b"0\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        await until(lambda: len(engine.exchanges) == 2)
        assert engine.exchanges[1].body == BODY
        assert b"expect" not in engine.exchanges[1].headers
        writer.close()


@pytest.mark.parametrize(
    "told", [b"content-length: 5\r\n\r\nfirst", b"transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n"]
)
async def test_an_answer_to_http_1_0_ends_with_its_connection(told: bytes) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\n" + told)

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = answer
        reader, writer = await connect(router)
        writer.write(post(version="1.0"))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert b"transfer-encoding" not in head
        assert body == b"first"
        writer.close()


async def test_a_connection_is_closed_after_the_answer_where_the_client_asks_for_it() -> None:
    async with upstream() as engine, gateway(engine) as router:
        reader, writer = await connect(router)
        writer.write(post(BODY, "connection: close"))
        answer = await reader.read()
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(OK)
        writer.close()


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_by_its_status_tells_no_length(status: int) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 %d X\r\nx-own: 1\r\n\r\n" % status)

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = answer
        for _ in range(2):
            got = await router.post()
            assert (got.status_code, got.content, got.headers["x-own"]) == (status, b"", "1")
            assert not got.headers.keys() & {"transfer-encoding", "content-length"}


async def test_an_offer_of_http_2_is_not_taken_up() -> None:
    async with upstream() as engine, gateway(engine) as router:
        reader, writer = await connect(router)
        offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAABAAMAAABk")
        writer.write(post(BODY, *offer) + post())
        assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 200]
        assert [exchange.body for exchange in engine.exchanges] == [BODY, BODY]
        writer.close()


async def test_idle_connections_are_closed_after_a_while() -> None:
    async with upstream() as engine, gateway(engine) as router:
        answered, silent, busy = [await connect(router) for _ in range(3)]
        answered[1].write(post())
        await read_answer(answered[0])
        engine.answer = never
        busy[1].write(post())
        clients = router.router.server.clients
        idle = clients.since[State.IDLE]
        await until(lambda: len(engine.exchanges) == 2 and len(idle) == 2)
        clients.tick(min(idle.values()) + 74)
        assert len(clients.open) == 3
        clients.tick(max(idle.values()) + 75)
        for reader, writer in (answered, silent):
            assert await reader.read() == b""
            writer.close()
        await until(lambda: len(clients.open) == 1)
        busy[1].close()
