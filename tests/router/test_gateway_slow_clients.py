"""Clients that take forever: to send, to read, or to leave. None keeps its place, and none keeps others out."""

import asyncio
import json

import pytest

from headwater.http.clients import State
from headwater.http.connection import ClientConnection
from headwater.http.request import Request
from tests.router.front import Front, Reader, front, post, read_answer
from tests.router.gateway import until

HEALTH = b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n"


async def is_let_go(reader: Reader) -> None:
    async with asyncio.timeout(60):
        assert await reader.read() == b""


async def assert_408(reader: Reader) -> None:
    async with asyncio.timeout(60):
        status, headers, body = await read_answer(reader)
        assert (status, headers["connection"]) == (408, "close")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert await reader.read() == b""


async def test_a_head_that_takes_longer_than_its_time_is_a_408_however_often_a_byte_comes() -> None:
    async with front() as running:
        reader, writer = await running.connect()
        writer.write(b"GET /health HTTP/1.1\r\n")
        await until(lambda: running.count(State.READING_HEAD) == 1)
        [began] = running.server.clients.since[State.READING_HEAD].values()
        [connection] = running.server.clients.open
        for _ in range(3):
            writer.write(b"x")
            await until(lambda: connection._received > 0)
        running.server.clients.tick(began + 9)
        assert running.count(State.READING_HEAD) == 1
        running.server.clients.tick(began + 10)
        await assert_408(reader)


async def test_blank_lines_before_a_request_do_not_keep_a_connection() -> None:
    async with front() as running:
        reader, writer = await running.connect()
        await running.until_open(1)
        [began] = running.server.clients.since[State.IDLE].values()
        [connection] = running.server.clients.open
        writer.write(b"\r\n")
        await until(lambda: connection._received == 2)
        running.server.clients.tick(began + 75)
        await is_let_go(reader)


@pytest.mark.parametrize("sent", [b"", b"x" * 9_000])
async def test_a_body_that_comes_too_slowly_is_a_408(sent: bytes) -> None:
    async with front() as running:
        reader, writer = await running.connect()
        writer.write(post(b"x" * 100_000)[:-100_000] + sent)
        await until(lambda: running.count(State.READING_BODY) == 1)
        await until(lambda: running.server.clients.bodies.in_flight == len(sent))
        running.tick(9)
        assert running.count(State.READING_BODY) == 1
        running.tick(10)
        await assert_408(reader)
        assert running.requests[0].path == "/v1/completions"


async def test_a_body_that_stalls_after_a_fast_beginning_is_a_408_and_one_that_goes_on_is_not() -> None:
    async with front() as running:
        reader, writer = await running.connect()
        body = b"x" * 100_000
        writer.write(post(body)[:-50_000])
        await until(lambda: running.server.clients.bodies.in_flight == 50_000)
        running.tick(10)
        assert running.count(State.READING_BODY) == 1
        writer.write(body[:20_000])
        await until(lambda: running.server.clients.bodies.in_flight == 70_000)
        running.tick(10)
        assert running.count(State.READING_BODY) == 1
        running.tick(10)
        await assert_408(reader)


async def test_the_rest_of_a_refused_body_must_come_in_time_too() -> None:
    async with front(limit=64) as running:
        reader, writer = await running.connect()
        writer.write(post(b"x" * 1000)[:-900])
        assert (await read_answer(reader))[0] == 413
        await until(lambda: running.count(State.READING_BODY) == 1)
        running.tick(10)
        await is_let_go(reader)
        assert len(running.requests) == 1


async def stream(request: Request, client: ClientConnection) -> None:
    """More than any client that reads nothing can have waiting."""
    client.begin(200, [])
    while True:
        if not client.write(b"x" * 65_536):
            await client.drained()


async def test_a_client_that_reads_nothing_of_its_answer_is_let_go_and_one_that_reads_is_not() -> None:
    async with front(stream) as running:
        _reader, writer = await running.connect()
        writer.transport.pause_reading()
        writer.write(post(b""))
        unread = running.server.clients.unread
        await until(lambda: len(unread) == 1)
        [connection] = unread
        await until(lambda: connection.write_paused)
        running.tick(119)
        assert len(running.server.clients.open) == 1
        # It takes something, and has time again.
        before = connection._unread
        writer.transport.resume_reading()
        await until(lambda: connection._not_taken() < before or not unread)
        writer.transport.pause_reading()
        await until(lambda: len(unread) == 1)
        await settled(connection)
        connection._unread = connection._not_taken() + 1
        running.tick(120)
        assert len(running.server.clients.open) == 1
        running.tick(120)
        await running.until_open(0)
        await until(lambda: len(running.handled) == 1)


async def settled(connection: ClientConnection) -> None:
    """Until the system takes and delivers no more."""
    same = 0
    last = -1
    async with asyncio.timeout(60):
        while same < 20:
            now = connection._not_taken()
            same, last = (same + 1, now) if now == last else (0, now)
            await asyncio.sleep(0.002)


async def test_answers_that_nobody_reads_do_not_pile_up() -> None:
    async def page(request: Request, client: ClientConnection) -> None:
        client.answer(200, [], b"x" * 1_000_000)

    async with front(page) as running:
        _, writer = await running.connect()
        writer.transport.pause_reading()
        for _ in range(20):
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n" * 10)
        await until(lambda: len(running.server.clients.unread) == 1)
        [connection] = running.server.clients.open
        await settled(connection)
        assert len(running.requests) - len(running.handled) <= 1
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 2_100_000
        assert len(connection._queue) <= 16 + 32


async def test_a_client_that_does_not_leave_after_its_last_answer_is_let_go() -> None:
    async with front() as running:
        reader, writer = await running.connect()
        writer.write(b"this is no HTTP\r\n\r\n")
        assert (await read_answer(reader))[0] == 400
        await until(lambda: running.count(State.CLOSING) == 1)
        writer.write(b"more of it")  # It is read, and thrown away: the answer reaches a client that is still sending.
        running.tick(29)
        assert len(running.server.clients.open) == 1
        running.tick(30)
        await running.until_open(0)


async def fill(running: Front, count: int, sent: bytes) -> list[Reader]:
    """With slow senders of many addresses."""
    readers = []
    for number in range(count):
        reader, writer = await running.connect(f"127.0.1.{1 + number % 100}")
        writer.write(sent)
        readers.append(reader)
    return readers


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", post(b"x" * 100)[:-90]])
async def test_health_is_answered_although_240_slow_senders_were_there_first(sent: bytes) -> None:
    async with front(open_files=160) as running:
        await fill(running, 240, sent)
        await until(lambda: running.server.paused)
        reader, writer = await running.connect("127.0.2.1")
        writer.write(HEALTH)
        answer = asyncio.create_task(read_answer(reader))
        async with asyncio.timeout(60):
            # Time passes until it is let in; then it needs none.
            while not answer.done():
                if not any(each._parser._client == "127.0.2.1" for each in running.server.clients.open):
                    running.tick(5)
                await asyncio.sleep(0.002)
            assert (await answer)[0] == 200


async def test_the_anteroom_keeps_nobody_for_more_than_seconds_and_reads_no_bodies() -> None:
    async with front(open_files=160) as running:
        await fill(running, 60, b"")
        await running.until_open(60)
        reader, writer = await running.connect("127.0.2.1")
        writer.write(post(b"x" * 100)[:-100])
        status, headers, body = await read_answer(reader)
        assert (status, headers["connection"]) == (503, "close")
        assert json.loads(body)["error"]["code"] == "overloaded"
        writer.close()
        await running.until_open(60)
        reader, writer = await running.connect("127.0.2.1")
        writer.write(b"GET /hea")
        await running.until_open(61)
        running.server.clients.tick(max(running.server.clients.anteroom.values()) + 3)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
