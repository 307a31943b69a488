"""Responses and messages through the gateway, to endpoints of servers that have only chat completions."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.headwater.chats import chat, stream
from tests.router.gateway import RunningGateway, gateway
from tests.router.upstream import JSON, SSE, Exchange, Upstream, upstream

RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
CALL = ("call_00001", "find", '{"city":"Bern"}')
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
ASK = {
    RESPONSES: {"model": "m", "input": "hi"},
    MESSAGES: {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
}
BOTH = pytest.mark.parametrize("path", [RESPONSES, MESSAGES])


def saying(document: dict[str, Any]) -> Callable[[Exchange], Any]:
    """As asked: whole, or streamed."""

    def answer(exchange: Exchange) -> Any:
        if json.loads(exchange.body).get("stream"):
            return exchange.whole(stream(document), 200, SSE)
        return exchange.whole(json.dumps(document).encode(), 200, JSON)

    return answer


@asynccontextmanager
async def engine_behind_a_router(
    document: dict[str, Any], backend: str = "headwater", **settings: Any
) -> AsyncIterator[tuple[Upstream, RunningGateway]]:
    async with upstream() as engine, gateway(engine, backend=backend, **settings) as router:
        engine.answer = saying(document)
        yield engine, router


def sent(engine: Upstream) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(engine.exchanges[-1].body)
    return body


def of_openai(router: RunningGateway, key: str = "x") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key=key, max_retries=0)


def of_anthropic(router: RunningGateway) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{router.port}", api_key="x", max_retries=0)


# OpenAI's client


async def test_openais_client_gets_a_response_and_goes_on_from_it() -> None:
    async with (
        engine_behind_a_router(chat("one", CALL, reasoning="hm")) as (engine, router),
        of_openai(router) as client,
    ):
        tool: Any = {"type": "function", "name": "find", "parameters": TOOL, "strict": True}
        first = await client.responses.create(model="m", input="hi", tools=[tool], instructions="be kind")
        assert engine.exchanges[-1].line.startswith(b"POST /v1/chat/completions ")
        assert (first.output_text, first.output[-1].type) == ("one", "function_call")
        engine.answer = saying(chat("two"))
        output: Any = [{"type": "function_call_output", "call_id": "call_00001", "output": "sunny"}]
        second = await client.responses.create(model="m", input=output, previous_response_id=first.id)
        assert [each["role"] for each in sent(engine)["messages"]] == ["user", "assistant", "tool"]
        assert second.previous_response_id == first.id
        assert (await client.responses.retrieve(second.id)).output_text == "two"
        listed = await client.responses.input_items.list(second.id)
        assert [item.type for item in listed.data] == ["function_call_output"]
        await client.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(second.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="m", input="hi", previous_response_id=second.id)


async def test_openais_streaming_helper_puts_a_response_together() -> None:
    async with engine_behind_a_router(chat("It is sunny.", CALL, reasoning="hm")) as (engine, router):
        async with of_openai(router) as client, client.responses.stream(model="m", input="hi") as told:
            kinds = [event.type async for event in told]
            response = await told.get_final_response()
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert response.output_text == "It is sunny."
        assert response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens == 4
        assert sent(engine)["stream_options"] == {"include_usage": True}
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="answered"}') == 1
        assert await router.metric('headwater_router_prompt_tokens_total{model="m"}') == 9


class City(BaseModel):
    city: str


async def test_openais_client_parses_what_has_a_form() -> None:
    async with engine_behind_a_router(chat('{"city":"Bern"}')) as (engine, router), of_openai(router) as client:
        parsed = await client.responses.parse(model="m", input="hi", text_format=City)
        assert parsed.output_parsed == City(city="Bern")
        assert sent(engine)["response_format"]["json_schema"]["name"] == "City"


# Anthropic's client


async def test_anthropics_client_gets_a_message_and_counts_tokens() -> None:
    async with engine_behind_a_router(chat("sunny", CALL)) as (engine, router), of_anthropic(router) as client:
        tool: Any = {"name": "find", "input_schema": TOOL}
        message = await client.messages.create(
            model="m", max_tokens=9, system="s", messages=[{"role": "user", "content": "hi"}], tools=[tool]
        )
        assert engine.exchanges[-1].line.startswith(b"POST /v1/chat/completions ")
        assert [block.type for block in message.content] == ["text", "tool_use"]
        assert (message.stop_reason, message.usage.input_tokens) == ("tool_use", 5)
        engine.answer = lambda exchange: exchange.whole(b'{"count":7,"tokens":[]}', 200, JSON)
        counted = await client.messages.count_tokens(model="m", messages=[{"role": "user", "content": "hi"}])
        assert counted.input_tokens == 7
        assert engine.exchanges[-1].line.startswith(b"POST /tokenize ")


async def test_anthropics_streaming_helper_puts_a_message_together() -> None:
    document = chat("It is sunny.", CALL, reasoning="hm", finish="tool_calls")
    async with engine_behind_a_router(document) as (_, router), of_anthropic(router) as client:
        asked: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        async with client.messages.stream(**asked) as told:
            said = "".join([text async for text in told.text_stream])
            message = await told.get_final_message()
        assert said == "It is sunny."
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        assert message.content[2].input == {"city": "Bern"}  # type: ignore[union-attr]
        assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 5)


# Which server is asked in what


@BOTH
@pytest.mark.parametrize("backend", ["headwater", "tgi", "tensorrt-llm", "transformers"])
async def test_servers_without_the_api_are_asked_for_a_chat_in_their_own_words(path: str, backend: str) -> None:
    document = chat("one")
    async with engine_behind_a_router(document, backend) as (engine, router):
        for streamed in (False, True):
            answer = await router.post(json.dumps({**ASK[path], "stream": streamed}).encode(), path)
            assert answer.status_code == 200
            assert b"one" in answer.content
            assert engine.exchanges[-1].line.startswith(b"POST /v1/chat/completions ")
            assert ("stream_options" in sent(engine)) == (streamed and backend != "transformers")


@BOTH
@pytest.mark.parametrize("backend", ["vllm", "sglang"])
async def test_servers_that_have_it_are_asked_in_it(path: str, backend: str) -> None:
    body = json.dumps(ASK[path]).encode()
    async with engine_behind_a_router({"id": "resp_1", "output": [], "content": []}, backend) as (engine, router):
        await router.post(body, path)
        assert engine.exchanges[-1].line.startswith(b"POST " + path.encode())
        assert engine.exchanges[-1].body == body


@BOTH
async def test_a_model_of_both_is_asked_for_chats_alone(path: str) -> None:
    async with upstream() as one, upstream() as other:
        flags = [f"{one.url},name=a,backend=vllm", f"{other.url},name=b,backend=headwater"]
        async with gateway(ready=2, endpoint=flags) as router:
            one.answer = other.answer = saying(chat("hi"))
            for _ in range(4):
                assert (await router.post(json.dumps(ASK[path]).encode(), path)).status_code == 200
            lines = {each.line for engine in (one, other) for each in engine.exchanges}
            assert lines == {b"POST /v1/chat/completions HTTP/1.1"}
            assert one.exchanges
            assert other.exchanges


# What goes wrong


def shape_of(path: str, answer: httpx.Response) -> dict[str, Any]:
    """The error, which is in the shape of the path's API."""
    said = answer.json()
    if path != RESPONSES:
        assert set(said) == {"type", "error", "request_id"}
        assert said["type"] == "error"
    error: dict[str, Any] = said["error"]
    assert error["message"]
    return error


@BOTH
async def test_errors_have_the_shape_of_the_api(path: str) -> None:
    async with engine_behind_a_router(chat("one"), max_attempts=1) as (engine, router):
        for body in (
            b'{"model":"none"}',
            b"{",
            b'{"model":"m"}',
            b"[" * 100_000,
            json.dumps({"model": "m", "tools": 5}).encode(),
        ):
            answer = await router.post(body, path)
            assert answer.status_code in (400, 404)
            shape_of(path, answer)
        assert not engine.exchanges
        refused = b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}'
        for status in (400, 500):
            engine.answer = lambda exchange, status=status: exchange.whole(refused, status, JSON)  # type: ignore[misc]
            answer = await router.post(json.dumps(ASK[path]).encode(), path)
            assert (answer.status_code, shape_of(path, answer)["message"]) == (status, "no")
        engine.answer = lambda exchange: exchange.whole(b'{"choices":[]}', 200, JSON)
        assert (await router.post(json.dumps(ASK[path]).encode(), path)).status_code == 502


async def test_errors_of_servers_that_have_messages_themselves_have_its_shape_too() -> None:
    async with engine_behind_a_router(chat("one"), "vllm") as (_, router):
        for path in (MESSAGES, COUNT):
            shape_of(path, await router.post(b'{"model":"none"}', path))


@BOTH
async def test_an_engine_that_breaks_off_within_a_stream_is_an_event_at_its_end(path: str) -> None:
    async def break_off(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(stream(chat("one two three"))[:700])
        exchange.abort()

    async with engine_behind_a_router(chat("")) as (engine, router):
        engine.answer = break_off
        answer = await router.post(json.dumps({**ASK[path], "stream": True}).encode(), path)
        last = json.loads(answer.content.rstrip().rpartition(b"\ndata: ")[2])
        assert last["type"] == ("response.failed" if path == RESPONSES else "error")
        assert b"event: response.completed" not in answer.content
        assert b"event: message_stop" not in answer.content
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="lost"}') == 1
        assert router.in_flight == 0


@BOTH
async def test_an_engine_that_breaks_off_within_a_document_is_a_502(path: str) -> None:
    async def break_off(exchange: Exchange) -> None:
        await exchange.write(
            b"HTTP/1.1 200 OK\r\n" + JSON + b"content-length: 1000\r\n\r\n" + b'{"choices":[{"index":0'
        )
        exchange.abort()

    async with engine_behind_a_router(chat(""), max_attempts=1) as (engine, router):
        engine.answer = break_off
        answer = await router.post(json.dumps(ASK[path]).encode(), path)
        assert answer.status_code == 502
        shape_of(path, answer)


@BOTH
async def test_a_client_that_leaves_takes_its_request_from_the_engine(path: str) -> None:
    async def go_on(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(stream(chat("one two"))[:520])
        await exchange.connection.gone.wait()

    async with engine_behind_a_router(chat("")) as (engine, router):
        engine.answer = go_on
        body = json.dumps({**ASK[path], "stream": True}).encode()
        async with router.client.stream("POST", path, content=body) as answer:
            await anext(answer.aiter_bytes())
        async with asyncio.timeout(60):
            await engine.exchanges[-1].connection.gone.wait()


@BOTH
async def test_comments_keep_a_stream_alive_that_waits(path: str) -> None:
    release = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await release.wait()
        await exchange.whole(stream(chat("one")), 200, SSE)

    async with engine_behind_a_router(chat(""), keep_alive_comments=0.01) as (engine, router):
        engine.answer = slowly
        body = json.dumps({**ASK[path], "stream": True}).encode()
        async with router.client.stream("POST", path, content=body) as answer:
            pieces = answer.aiter_bytes()
            assert (await anext(pieces)).startswith(b": keep-alive")
            release.set()
            rest = b"".join([piece async for piece in pieces])
        assert b"event: response.completed" in rest or b"event: message_stop" in rest


async def test_a_response_is_its_keys_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys:\n- {name: a, key: key-of-a-0000000000}\n- {name: b, key: key-of-b-0000000000}\n")
    async with engine_behind_a_router(chat("secret"), api_keys=keys) as (engine, router):
        one, other = of_openai(router, "key-of-a-0000000000"), of_openai(router, "key-of-b-0000000000")
        made = await one.responses.create(model="m", input="hi")
        asked = len(engine.exchanges)
        with pytest.raises(openai.NotFoundError):
            await other.responses.create(model="m", input="say it again", previous_response_id=made.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.delete(made.id)
        assert len(engine.exchanges) == asked
        assert (await one.responses.retrieve(made.id)).output_text == "secret"


@BOTH
async def test_bodies_that_would_cost_more_than_they_are_worth_are_refused(path: str) -> None:
    name = "input" if path == RESPONSES else "messages"
    body = b'{"model":"m","max_tokens":1,"' + name.encode() + b'":[' + b",".join([b'{"a":1}'] * 100_000) + b"]}"
    async with engine_behind_a_router(chat("one")) as (engine, router):
        answer = await router.post(body, path)
        assert answer.status_code == 400
        assert "brackets" in shape_of(path, answer)["message"]
        assert not engine.exchanges


async def test_a_conversation_that_an_endpoint_holds_stays_there_when_others_come() -> None:
    made = b'{"id":"resp_1","output":[]}'
    async with upstream() as able, upstream() as bare:
        flags = [f"{able.url},name=a,backend=vllm", f"{bare.url},name=b,backend=headwater"]
        bare.pages[b"/health"] = bare.pages[b"/ready"] = (503, b"")
        bare.serve_models()
        async with gateway(ready=1, endpoint=flags) as router:
            able.answer = lambda exchange: exchange.whole(made, 200, JSON)
            await router.post(json.dumps(ASK[RESPONSES]).encode(), RESPONSES)
            bare.serve_models("m")
            bare.pages[b"/health"] = bare.pages[b"/ready"] = (200, b"")
            await router.until_ready(2)
            goes_on = json.dumps({**ASK[RESPONSES], "previous_response_id": "resp_1"}).encode()
            for _ in range(3):
                assert (await router.post(goes_on, RESPONSES)).status_code == 200
            assert {each.line for each in able.exchanges} == {b"POST /v1/responses HTTP/1.1"}
            assert not bare.exchanges


@BOTH
async def test_an_answer_that_is_too_long_to_be_told_is_a_502(path: str) -> None:
    async def at_length(exchange: Exchange) -> None:
        piece = b"x" * (1 << 20)
        head = b"HTTP/1.1 200 OK\r\n" + JSON + b"content-length: %d\r\n\r\n" % (17 << 20)
        await exchange.write(head + b'{"choices":[{"message":{"content":"' + piece[35:])
        for _ in range(16):
            await exchange.write(piece)

    async with engine_behind_a_router(chat("")) as (engine, router):
        engine.answer = at_length
        answer = await router.post(json.dumps(ASK[path]).encode(), path)
        assert answer.status_code == 502
        shape_of(path, answer)
