"""Comments keep a stream alive that waits for its first token; what fails behind them is told in the stream."""

import asyncio
import json

import pytest

from headwater_router.gateway.keepalive import KeepAlive
from tests.router.gateway import STREAM, RunningGateway, gateway, until
from tests.router.streams import DONE, WORD, last_event, streaming
from tests.router.upstream import JSON, Exchange, never, upstream


async def test_comments_keep_a_stream_alive_that_waits() -> None:
    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(0.2)
        await streaming(WORD, DONE)(exchange)

    async with upstream() as engine, gateway(engine, keep_alive_comments=0.05) as router:
        engine.answer = late
        content = (await router.post(STREAM)).content
        assert content.startswith(b": keep-alive\n\n")
        assert content.replace(b": keep-alive\n\n", b"") == WORD + DONE
        engine.answer = never
        router.router.dispatcher._answer_timeout = 0.2
        assert last_event((await router.post(STREAM)).content)["code"] == "endpoint_timeout"


async def after_a_comment(router: RunningGateway, may_answer: asyncio.Event) -> bytes:
    """What a stream gets where its engine answers, or goes on, only when a first comment has gone to the client."""
    reader, writer = await router.open(STREAM)
    try:
        async with asyncio.timeout(60):
            await reader.readuntil(b": keep-alive\n\n")
            may_answer.set()
            content = await reader.readuntil(b"\r\n0\r\n\r\n")
    finally:
        writer.close()
    return content.replace(b": keep-alive\n\n", b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + JSON + b'content-length: 11\r\n\r\n{"ok":true}',
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<h1>x\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
    ids=["JSON", "HTML", "nothing"],
)
@pytest.mark.parametrize("first", ["nothing", "the head"])
async def test_what_is_no_stream_is_an_error_event_where_comments_have_begun_one(answer: bytes, first: str) -> None:
    may_answer = asyncio.Event()
    head, end, rest = answer.partition(b"\r\n\r\n")

    async def late(exchange: Exchange) -> None:
        if first == "the head" and rest:
            await exchange.write(head + end)
        await may_answer.wait()
        await exchange.write(rest if first == "the head" and rest else answer)

    async with upstream() as engine, gateway(engine, keep_alive_comments=0.05) as router:
        engine.answer = late
        content = await after_a_comment(router, may_answer)
        assert last_event(content.replace(b"\r\n0\r\n", b""))["code"] == "endpoint_malformed"
        assert content.count(b"data: ") == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not\nlike\n", "not like"),
        (b'{"object":"error","message":"no"}', "no"),
        (b"", "The endpoint answered with 400, "),
    ],
    ids=["text", "another shape", "nothing"],
)
async def test_a_refusal_in_another_shape_is_told_in_openais_where_comments_have_begun_a_stream(
    body: bytes, message: str
) -> None:
    may_answer = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await may_answer.wait()
        await exchange.whole(body, 400, b"content-type: text/plain\r\n")

    async with upstream() as engine, gateway(engine, keep_alive_comments=0.05) as router:
        engine.answer = late
        content = await after_a_comment(router, may_answer)
        error = last_event(content.replace(b"\r\n0\r\n", b""))
        assert (error["message"][: len(message)], error["type"]) == (message, "invalid_request_error")
        assert content.count(b"data: ") == 1


async def test_a_refusal_is_told_in_its_own_words_where_comments_have_begun_a_stream() -> None:
    may_answer = asyncio.Event()
    refusal = b'{"error": {"message": "two  blanks,\\nand a line", "code": "own"}}'

    async def late(exchange: Exchange) -> None:
        await may_answer.wait()
        await exchange.whole(refusal, 400)

    async with upstream() as engine, gateway(engine, keep_alive_comments=0.05) as router:
        engine.answer = late
        content = await after_a_comment(router, may_answer)
        assert last_event(content.replace(b"\r\n0\r\n", b"")) == json.loads(refusal)["error"]


async def test_no_comment_is_within_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[KeepAlive] = []
    make = lambda *how: made.append(KeepAlive(*how)) or made[0]  # noqa: E731
    monkeypatch.setattr("headwater_router.gateway.forward.KeepAlive", make)
    looked, slow = asyncio.Event(), b'{"error":{"message":"' + b"x" * 100 + b'"}}'

    async def slowly(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 400 Bad\r\n" + JSON + b"content-length: %d\r\n\r\n" % len(slow) + slow[:50])
        await looked.wait()
        await exchange.write(slow[50:])

    async with upstream() as engine, gateway(engine, keep_alive_comments=60.0) as router:
        engine.answer = slowly
        reader, writer = await router.open(STREAM)
        async with asyncio.timeout(60):
            await until(lambda: bool(made) and made[0]._timer is None)  # none is to come
            looked.set()
            await reader.readuntil(slow)
        writer.close()
