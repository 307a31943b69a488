"""What a stream's client sees of refusals, failures and slowness; and what it costs the others."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.http.connection import ClientConnection
from headwater_engine.config import EngineSettings
from headwater_engine.core.messages import Abort, FinishReason, Generate, Output, Outputs, Refusal, TokenLogprobs
from headwater_engine.formats.parts import Content
from headwater_engine.server.answer import Piece, Reader
from headwater_engine.server.serve import EngineServer
from headwater_engine.server.served_model import ServedModel
from tests.engine.fake_engine import FakeEngine, sorted_alphabet
from tests.engine.front import CHAT, TEXT, events, free_port, post, until

PATHS: list[tuple[str, dict[str, Any]]] = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
HALF_A_MIB = 2**19


@asynccontextmanager
async def serving(engine: FakeEngine, **changes: Any) -> AsyncIterator[tuple[EngineServer, httpx.AsyncClient]]:
    settings = EngineSettings(model="random:tiny", port=free_port(), **changes)
    server = EngineServer(settings, command=engine.command)
    running = asyncio.create_task(server.run())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=60) as http:
        try:
            await until(http, "/health", 200)
            await engine.be_ready(max_model_len=10_000_000)
            await until(http, "/ready", 200)
            yield server, http
        finally:
            await engine.exit(0)
            await running


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine) as (_, http):
        yield http


# Before the first token


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("path", "body"), PATHS, ids=["chat", "text"])
async def test_what_fails_before_its_first_token_is_answered_with_a_status(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any], stream: bool
) -> None:
    answer = post(http, path, {**body, "stream": stream})
    question = await engine.hear_question()
    await engine.say(Outputs([Output(id=question.id, finish_reason=FinishReason.ERROR, error="Not finite.")]))
    assert (await answer).status_code == 500
    assert (await answer).headers["content-type"] == "application/json"
    assert (await answer).json()["error"]["code"] == "engine_error"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("path", "body"), PATHS, ids=["chat", "text"])
async def test_what_the_engine_refuses_is_a_bad_request_with_its_code(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any], stream: bool
) -> None:
    answer = post(http, path, {**body, "stream": stream})
    question = await engine.hear_question()
    refusal = Refusal(code="context_length_exceeded", message="Too long.")
    await engine.say(Outputs([Output(id=question.id, finish_reason=FinishReason.ERROR, refusal=refusal)]))
    assert (await answer).status_code == 400
    error = (await answer).json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
    assert error["message"] == "Too long."


async def test_a_stream_that_fails_later_ends_with_an_event(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = post(http, "/v1/completions", {**TEXT, "stream": True})
    question = await engine.hear_question()
    await engine.answer(question, "begun")
    await engine.say(Outputs([Output(id=question.id, finish_reason=FinishReason.ERROR, error="Not finite.")]))
    assert (await answer).status_code == 200
    begun, failed = [json.loads(line.removeprefix("data: ")) for line in (await answer).text.split("\n\n") if line]
    assert begun["choices"][0]["text"] == "begun"
    assert failed["error"]["message"] == "Not finite."


# What one request costs the others


class _Panic(BaseException):
    """As a tokenizer raises it: it is no Exception."""


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("error", [RuntimeError, _Panic])
async def test_whatever_one_of_n_choices_raises_ends_the_answer_and_all_that_was_asked_for_it(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
    error: type[BaseException],
) -> None:
    read = Reader.read

    def read_or_raise(self: Reader, output: Output, index: int) -> Piece:
        if index == 1:
            raise error("a bug")
        return read(self, output, index)

    monkeypatch.setattr(Reader, "read", read_or_raise)
    answer = post(http, "/v1/completions", {**TEXT, "n": 3, "stream": stream})
    questions = [await engine.hear_question() for _ in range(3)]
    await engine.answer(questions[1], "x")
    assert (await answer).status_code == 500
    assert "a bug" not in (await answer).text
    aborted = [each.ids for each in [await engine.hear() for _ in range(3)] if isinstance(each, Abort)]
    assert sorted(aborted) == sorted([question.id] for question in questions)


@pytest.mark.parametrize("error", [RuntimeError, _Panic])
async def test_whatever_a_tokenizer_raises_is_answered(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def encode(self: ServedModel, text: str, *, add_special_tokens: bool) -> list[int]:
        raise error("a bug")

    monkeypatch.setattr(ServedModel, "encode", encode)
    for path, body in [*PATHS, ("/tokenize", TEXT)]:
        answer = await http.post(path, json=body)
        assert (answer.status_code, set(answer.json()["error"])) == (500, {"message", "type", "param", "code"})
        assert "a bug" not in answer.text


async def test_an_answer_that_fails_keeps_no_other_from_what_came_with_it(
    http: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_for_it(self: Reader, output: Output, index: int) -> Piece:
        if output.id == bad.id:
            raise RuntimeError("a bug")
        return read(self, output, index)

    read = Reader.read
    monkeypatch.setattr(Reader, "read", raise_for_it)
    answers = [post(http, "/v1/completions", TEXT)]
    bad = await engine.hear_question()
    answers.append(post(http, "/v1/completions", TEXT))
    good = await engine.hear_question()
    await engine.say(Outputs([Output(id=each.id, tokens=[0], finish_reason=FinishReason.STOP) for each in (bad, good)]))
    assert [(await answer).status_code for answer in answers] == [500, 200]


async def test_a_token_goes_out_within_the_call_that_brings_it(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(engine) as (server, http):
        answers = [post(http, "/v1/completions", {**TEXT, "stream": True}) for _ in range(4)]
        questions = [await engine.hear_question() for _ in answers]
        for question in questions:
            await engine.answer(question, "begun")
        connections = [each for each in server._server.clients.open if each.answering]
        await hold(lambda: all(each.answer_began for each in connections))
        before = [each.bytes_sent for each in connections]
        later: list[Any] = []
        with monkeypatch.context() as patched:
            # Each task or future that goes on is one of these.
            patched.setattr(asyncio.get_running_loop(), "call_soon", lambda *call, **rest: later.append(call))
            server._engine._take(Outputs([Output(id=each.id, tokens=[0]) for each in questions]))
        assert later == []
        assert all(each.bytes_sent > sent for each, sent in zip(connections, before, strict=True))
        for question in questions:
            await engine.answer(question, "!", FinishReason.STOP)
        assert [len(events(await answer)) for answer in answers] == [3] * 4


# Clients that do not keep up


async def ask_without_reading(http: httpx.AsyncClient, body: dict[str, Any]) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", http.base_url.port))
    data = json.dumps(body).encode()
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data))
    return client


async def hold(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.005)


async def say(engine: FakeEngine, question: Generate, character: str) -> None:
    """A thousand tokens at once."""
    token = sorted_alphabet().index(character)
    await engine.say(Outputs([Output(id=question.id, tokens=[token] * 1000)]))


async def fill(engine: FakeEngine, question: Generate, connection: ClientConnection) -> int:
    """Write to a client that does not read until it is held back. Returns how often."""
    assert connection._transport is not None
    connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    written = 0
    async with asyncio.timeout(60):
        while not connection.write_paused:
            await say(engine, question, "x")
            written += 1
            await asyncio.sleep(0.001)
    return written


async def rest_of(client: socket.socket) -> str:
    """Of an answer in chunks; closes it."""
    received = bytearray()
    async with asyncio.timeout(60):
        while not received.endswith(b"0\r\n\r\n"):
            received += await asyncio.get_running_loop().sock_recv(client, 2**20)
    client.close()
    body = bytearray()
    chunks = received.partition(b"\r\n\r\n")[2]
    while (size := int(chunks[: chunks.index(b"\r\n")], 16)) > 0:
        start = chunks.index(b"\r\n") + 2
        body += chunks[start : start + size]
        chunks = chunks[start + size + 2 :]
    return body.decode()


async def test_a_client_that_does_not_read_is_held_back_and_gets_the_rest_in_one_piece(engine: FakeEngine) -> None:
    async with serving(engine) as (server, http):
        client = await ask_without_reading(http, {**TEXT, "stream": True})
        question = await engine.hear_question()
        [connection] = [each for each in server._server.clients.open if each.answering]
        written = await fill(engine, question, connection)
        before = connection._transport.get_write_buffer_size()  # type: ignore[union-attr]
        for _ in range(200):
            await say(engine, question, "y")
        await engine.answer(question, "!", FinishReason.STOP)
        await hold(lambda: server._metrics.generation_tokens.value == (written + 200) * 1000 + 1)
        # Much has come since, and none of it was written.
        assert connection._transport.get_write_buffer_size() <= before  # type: ignore[union-attr]
        assert before < HALF_A_MIB
        chunks = events(httpx.Response(200, text=await rest_of(client)))
        texts = [chunk["choices"][0]["text"] for chunk in chunks]
        assert "".join(texts) == "x" * 1000 * written + "y" * 1000 * 200 + "!"
        assert texts[-1].endswith("y" * 1000 * 200 + "!")
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_client_that_leaves_while_it_is_held_back_is_forgotten(engine: FakeEngine) -> None:
    async with serving(engine) as (server, http):
        client = await ask_without_reading(http, {**TEXT, "stream": True})
        question = await engine.hear_question()
        [connection] = [each for each in server._server.clients.open if each.answering]
        await fill(engine, question, connection)
        client.close()
        assert await engine.hear_abort() == [question.id]
        await hold(lambda: not server._app.running and not server._engine.open_requests)


async def test_a_client_that_reads_again_gets_what_was_held_and_then_what_comes(engine: FakeEngine) -> None:
    async with serving(engine) as (server, http):
        client = await ask_without_reading(http, {**TEXT, "stream": True, "n": 2})
        questions = sorted([await engine.hear_question() for _ in range(2)], key=lambda each: each.id)
        [connection] = [each for each in server._server.clients.open if each.answering]
        written = await fill(engine, questions[0], connection)
        await engine.answer(questions[1], "held")
        await engine.answer(questions[0], "held")
        received = asyncio.create_task(rest_of(client))
        await hold(lambda: not connection.write_paused)
        for question in questions:
            await engine.answer(question, " more", FinishReason.STOP)
        texts = ["", ""]
        for chunk in events(httpx.Response(200, text=await received)):
            [choice] = chunk["choices"]
            texts[choice["index"]] += choice["text"]
        assert texts == ["x" * 1000 * written + "held more", "held more"]


pieces = st.builds(
    Piece,
    index=st.just(0),
    parts=st.lists(st.builds(Content, st.text("ab", min_size=1, max_size=3)), max_size=2),
    logprobs=st.lists(st.integers(0, 9).map(lambda token: TokenLogprobs(token, -1.0, 1, [])), max_size=2),
)


@given(st.lists(pieces, min_size=1), st.sampled_from([("stop", "END"), ("length", None)]))
def test_merged_pieces_say_what_the_single_ones_did(given_pieces: list[Piece], end: tuple[str, str | None]) -> None:
    text = "".join(piece.text for piece in given_pieces)
    scored = [each for piece in given_pieces for each in piece.logprobs]
    first, *later = given_pieces
    first.prompt_logprobs = [None]
    later.append(Piece(0, [], [], None, *end))
    for piece in later:
        first.append(piece)
    assert first.text == text
    assert first == Piece(0, first.parts, scored, [None], *end)


# What a client may take


async def test_bodies_and_heads_have_a_largest_size(engine: FakeEngine) -> None:
    async with serving(engine, max_body_mib=0.001) as (_, http):
        for path, body in PATHS:
            assert (await http.post(path, json={**body, "user": "x" * 2000})).status_code == 413
        large = await http.get("/health", headers={"x-large": "x" * 65_536})
        assert (large.status_code, set(large.json()["error"])) == (431, {"message", "type", "param", "code"})


async def test_a_body_may_come_compressed(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    headers = {"content-encoding": "gzip"}
    answer = asyncio.create_task(
        http.post("/v1/completions", content=gzip.compress(json.dumps(TEXT).encode()), headers=headers)
    )
    await engine.answer(await engine.hear_question(), "ok", FinishReason.STOP)
    assert (await answer).json()["choices"][0]["text"] == "ok"


async def test_a_head_alone_and_a_slash_at_the_end_are_no_mistakes(http: httpx.AsyncClient) -> None:
    head = await http.head("/health")
    assert (head.status_code, head.content) == (200, b"")
    assert (await http.get("/health/")).status_code == 200
    assert (await http.get("/health", headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"
