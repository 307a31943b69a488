"""/v1/responses and /v1/messages of the engine's own server: chats that are told in other words."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from headwater.http.exchanges import Exchanges
from headwater_engine.core.messages import FinishReason
from tests.engine.fake_engine import FakeEngine
from tests.engine.front import CHAT, post

RESPONSE: dict[str, Any] = {"model": "tiny", "input": "Hi"}
MESSAGE: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


def named_events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for event in answer.text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def respond(
    http: httpx.AsyncClient, engine: FakeEngine, body: dict[str, Any], text: str
) -> tuple[Any, list[int]]:
    """The response that the engine's `text` becomes, and the prompt that it heard."""
    answer = post(http, "/v1/responses", body)
    question = await engine.hear_question()
    await engine.answer(question, text, FinishReason.STOP)
    return (await answer).json(), question.prompt


async def test_a_response_is_the_chat_in_other_words(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body, prompt = await respond(http, engine, {**RESPONSE, "max_output_tokens": 20}, "Hello")
    chat = (await http.post("/tokenize", json=CHAT)).json()
    assert prompt == chat["tokens"]
    assert (body["object"], body["status"]) == ("response", "completed")
    assert body["output"][0]["content"][0]["text"] == "Hello"
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (len(prompt), 5)


async def test_a_response_goes_on_from_one_that_is_kept_until_it_is_deleted(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first, prompt = await respond(http, engine, RESPONSE, "Hello")
    path = f"/v1/responses/{first['id']}"
    assert (await http.get(path)).json() == first
    items = (await http.get(f"{path}/input_items")).json()["data"]
    assert items[0]["content"] == "Hi"
    further = {**RESPONSE, "input": "On", "previous_response_id": first["id"]}
    _, longer = await respond(http, engine, further, "Well")
    assert longer[: len(prompt)] == prompt
    assert len(longer) > len(prompt) + len("Hello")
    assert (await http.delete(path)).json() == {"id": first["id"], "object": "response", "deleted": True}
    for answer in (await http.get(path), await http.post("/v1/responses", json=further)):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "response_not_found"
    assert (await http.put(path)).status_code == 405


async def test_a_response_that_is_not_to_be_stored_is_not(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body, _ = await respond(http, engine, {**RESPONSE, "store": False}, "Hello")
    assert (await http.get(f"/v1/responses/{body['id']}")).status_code == 404


async def test_a_streamed_response_is_the_whole_one_in_events(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = post(http, "/v1/responses", {**RESPONSE, "stream": True})
    question = await engine.hear_question()
    await engine.answer(question, "Hel")
    await engine.answer(question, "lo", FinishReason.STOP)
    events = named_events(await answer)
    assert events[0][0] == "response.created"
    assert "".join(data["delta"] for name, data in events if name == "response.output_text.delta") == "Hello"
    name, last = events[-1]
    assert name == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == "Hello"
    assert last["response"]["usage"]["output_tokens"] == 5


async def test_a_message_and_its_events(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = post(http, "/v1/messages", MESSAGE)
    question = await engine.hear_question()
    assert question.params.max_tokens == 9
    await engine.answer(question, "Hello", FinishReason.STOP)
    body = (await answer).json()
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "end_turn")
    assert [block["text"] for block in body["content"]] == ["Hello"]
    answer = post(http, "/v1/messages", {**MESSAGE, "stream": True})
    question = await engine.hear_question()
    for text, finish in (("Hel", None), ("lo", FinishReason.LENGTH)):
        await engine.answer(question, text, finish)
    events = named_events(await answer)
    assert events[0][0] == "message_start"
    assert "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta") == "Hello"
    assert [data["delta"]["stop_reason"] for name, data in events if name == "message_delta"] == ["max_tokens"]


async def test_tokens_of_a_message_are_those_of_the_chat(http: httpx.AsyncClient) -> None:
    asked = {"model": "tiny", "messages": MESSAGE["messages"]}
    chat = (await http.post("/tokenize", json=CHAT)).json()
    assert (await http.post("/v1/messages/count_tokens", json=asked)).json() == {"input_tokens": chat["count"]}


async def test_what_the_server_refuses_before_a_message_is_read_is_in_its_shape_too(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"content-encoding": "gzip"}
    for answer, status in (
        (await http.get("/v1/messages"), 405),
        (await http.post("/v1/messages", content=b"{}", headers=broken), 400),
        (await http.post("/v1/messages/count_tokens", content=b"{}", headers=broken), 400),
    ):
        assert (answer.status_code, answer.json()["type"]) == (status, "error"), answer.text
    monkeypatch.setattr(Exchanges, "read", None)
    answer = await http.post("/v1/messages", json=MESSAGE)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")


async def test_errors_are_in_the_shape_of_the_path(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for body, status, kind in (
        ({**MESSAGE, "model": "other"}, 404, "not_found_error"),
        ({**MESSAGE, "max_tokens": 0}, 400, "invalid_request_error"),
        ({**MESSAGE, "messages": []}, 400, "invalid_request_error"),
    ):
        answer = await http.post("/v1/messages", json=body)
        assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (status, "error", kind)
    answer = await http.post("/v1/responses", json={**RESPONSE, "background": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_done_here")
    answer = await http.post("/v1/responses", content=b"{")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_errors_have_the_names_of_the_path_and_the_requests_id(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/messages", json={**MESSAGE, "stop_sequences": [5]}, headers={"x-request-id": "mine"})
    error = {"type": "invalid_request_error", "message": "`stop_sequences[0]`: must be text, found 5."}
    assert answer.json() == {"type": "error", "error": error, "request_id": "mine"}
    for body in ({}, {**MESSAGE, "temperature": 9}, {**MESSAGE, "model": "other"}):
        answer = await http.post("/v1/messages", json=body)
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    for fields, param in (({"max_output_tokens": "x"}, "max_output_tokens"), ({"input": "x" * 9999}, "input")):
        error = (await http.post("/v1/responses", json={**RESPONSE, **fields})).json()["error"]
        assert error["param"] == param
        assert "messages" not in error["message"] and "completion" not in error["message"]


async def test_a_message_that_the_assistant_has_begun_is_gone_on_with(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    begun = {"role": "assistant", "content": "The capital is"}
    answer = post(http, "/v1/messages", {**MESSAGE, "messages": [*MESSAGE["messages"], begun]})
    question = await engine.hear_question()
    await engine.answer(question, " Bern.", FinishReason.STOP)
    assert (await answer).json()["content"][0]["text"] == " Bern."
    prompt = (await http.post("/detokenize", json={"tokens": question.prompt})).json()["prompt"]
    assert prompt.endswith("The capital is")


async def test_a_failure_within_the_engine_is_told_in_the_shape_too(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = post(http, "/v1/messages", {**MESSAGE, "stream": True})
    question = await engine.hear_question()
    await engine.answer(question, "Hel")
    await engine.answer(question, "", FinishReason.ERROR, error="It broke.")
    name, data = named_events(await answer)[-1]
    assert (name, data["type"]) == ("error", "error")


async def test_the_engine_hears_when_the_client_of_a_response_leaves(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = post(http, "/v1/responses", {**RESPONSE, "stream": True})
    question = await engine.hear_question()
    await engine.answer(question, "Hel")
    answer.cancel()
    assert await engine.hear_abort() == [question.id]


async def test_openais_client_streams_a_response(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    async def stream() -> str:
        async with client.responses.stream(model="tiny", input="Hi") as events:
            return (await events.get_final_response()).output_text

    client = openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none")
    answer = asyncio.create_task(stream())
    question = await engine.hear_question()
    await engine.answer(question, "Hello", FinishReason.STOP)
    assert await answer == "Hello"
    await client.close()
