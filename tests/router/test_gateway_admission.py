"""What is decided from a head, over the wire: before the body, in turn, and seen by a client that still sends."""

import asyncio
import json
import re

import pytest

from headwater.http.connection import ClientConnection
from headwater.http.request import Head, Request
from headwater.openai.errors import APIError, BadRequestError
from tests.router.front import Counted, front, post, read_answer
from tests.router.gateway import CHAT, gateway, until
from tests.router.upstream import upstream


def no_strangers(head: Head) -> APIError | None:
    return None if (b"x-key", b"mine") in head.headers else BadRequestError("Who are you?", code="stranger")


async def test_a_stranger_is_answered_before_its_body_is_read_and_in_its_turn() -> None:
    door = Counted(no_strangers)
    async with front(admit=door) as running:
        reader, writer = await running.connect()
        writer.write(post(b"1", "x-key: mine") + post(b"x" * 1000)[:-1000])
        assert (await read_answer(reader))[2] == b"1"
        status, headers, body = await read_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (400, "stranger")
        assert "connection" not in headers
        writer.write(b"x" * 1000 + post(b"2", "x-key: mine"))
        assert (await read_answer(reader))[2] == b"2"
        assert running.server.clients.bodies.in_flight == 0
        assert [request.body for request in running.requests] == [b"", b"", b""]
        assert [head.client for head in door.heads] == ["127.0.0.1"] * 3
        assert (door.taken, door.given) == (2, 2)


async def test_a_stranger_with_a_long_body_gets_to_see_its_answer_while_it_still_sends() -> None:
    async with front(admit=Counted(no_strangers), limit=2**26) as running:
        reader, writer = await running.connect()
        body = b"x" * 2**23
        writer.write(post(body))
        status, headers, _ = await read_answer(reader)
        assert (status, headers["connection"]) == (400, "close")
        await asyncio.wait_for(writer.drain(), 60)
        assert await reader.read() == b""
        writer.close()
        await running.until_open(0)


async def test_what_was_found_is_there_for_who_answers_and_given_back_once_it_has_ended() -> None:
    door = Counted()
    go_on = asyncio.Event()

    async def handle(request: Request, client: ClientConnection) -> None:
        assert request.admitted is door
        await go_on.wait()
        client.answer(200, [], b"")

    async with front(handle, admit=door) as running:
        reader, writer = await running.connect()
        writer.write(post(b"hello"))
        await until(lambda: len(running.requests) == 1)
        assert door.given == 0
        go_on.set()
        await read_answer(reader)
        await until(lambda: door.given == 1)
        writer.close()


async def test_a_handler_that_fails_gives_back_what_was_taken_up() -> None:
    async def handle(request: Request, client: ClientConnection) -> None:
        client.begin(200, [])
        client.write(b"half")
        raise BadRequestError("a mistake of ours")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    door = Counted()
    async with front(handle, admit=door) as running:
        reader, writer = await running.connect()
        writer.write(post(b"hello"))
        assert (await reader.read()).endswith(b"half\r\n")
        await until(lambda: door.given == 1)
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [b"GET /health HTTP/1.1\r\n\r\n", b"GET /nowhere HTTP/1.1\r\n\r\n", b"no HTTP\r\n\r\n", post(b"{}", path=CHAT)],
    ids=["health", "nowhere", "no HTTP", "forwarded"],
)
async def test_every_answer_has_an_id(sent: bytes) -> None:
    async with upstream() as engine, gateway(engine) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        [given] = re.findall(rb"x-request-id: (\w+)\r\n", head)
        assert len(given) == 32
        writer.close()


async def test_an_engine_is_asked_under_the_id_that_the_client_is_answered_under() -> None:
    async with upstream() as engine, gateway(engine) as router:
        for given in ("mine", "x" * 200, None):
            answer = await router.post(**({"x_request_id": given} if given else {}))
            shown = answer.headers.get_list("x-request-id")
            assert shown == [engine.exchanges[-1].headers[b"x-request-id"].decode()]
            assert (shown == [given]) == (given == "mine")


async def test_a_path_with_a_slash_at_its_end_goes_on_without() -> None:
    async with upstream() as engine, gateway(engine) as router:
        assert (await router.post(path=CHAT + "/?a=1")).status_code == 200
        assert engine.exchanges[0].line == f"POST {CHAT}?a=1 HTTP/1.1".encode()
        assert (await router.client.get("/health/")).status_code == 200


async def test_bytes_of_an_answer_are_counted_without_what_frames_them() -> None:
    sent: list[int] = []

    async def handle(request: Request, client: ClientConnection) -> None:
        client.begin(200, [])
        client.write(b"12")
        client.relay(b"345")
        client.end(b"6789")
        sent.append(client.bytes_sent)

    async with front(handle) as running:
        reader, writer = await running.connect()
        writer.write(post(b"") + post(b"", "connection: close"))
        await reader.read()
        assert sent == [9, 9]
