"""OpenAI's responses over chat completions: requests, answers, streams, each held to the client's own types."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from headwater.apis.responses import Responses
from headwater.apis.responses.stored import Stored
from headwater.openai.errors import BadRequestError, NotFoundError
from tests.headwater.chats import TOOL, chat, chunks

CALLS = (("call_00001", "find", '{"city":"Bern"}'), ("call_00002", "find", "{}"))
FUNCTION = {"type": "function", "name": "f", "parameters": TOOL, "strict": True}
_event = TypeAdapter[ResponseStreamEvent](ResponseStreamEvent)


def exchange(stored: Stored | None = None, owner: str = "", **fields: Any) -> Responses:
    return Responses({"model": "m", "input": "hi", **fields}, stored if stored is not None else Stored(), owner)


def asked(**fields: Any) -> dict[str, Any]:
    return exchange(**fields).chat()


def streamed(document: dict[str, Any], size: int = 3, **fields: Any) -> list[dict[str, Any]]:
    stream = exchange(stream=True, **fields).events()
    told = [each for chunk in chunks(document, size) for each in stream.feed(chunk)] + stream.end()
    for number, each in enumerate(told):
        assert each.name == each.data["type"]
        assert each.data["sequence_number"] == number
        _event.validate_python(each.data)
    return [each.data for each in told]


def bare(value: Any) -> Any:
    """Without the ids and times that are made up for each."""
    if isinstance(value, list):
        return [bare(each) for each in value]
    if isinstance(value, dict):
        return {name: bare(each) for name, each in value.items() if name not in ("id", "created_at", "completed_at")}
    return value


def test_items_become_messages_of_a_chat() -> None:
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "detail": "low"}]},
    ]
    assert asked(input=items, instructions="s")["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "b",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}]},
    ]


@pytest.mark.parametrize(
    ("fields", "chat_fields"),
    [
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"max_output_tokens": 5, "temperature": 0}, {"max_completion_tokens": 5, "temperature": 0}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"format": {"type": "text"}, "verbosity": "medium"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": TOOL, "strict": True}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": TOOL, "strict": True}}},
        ),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"], "store": False, "metadata": {"a": "b"}}, {}),
        ({"tool_choice": "auto", "tools": []}, {}),
        ({"seed": 3, "cache_salt": "s", "user": "u"}, {"seed": 3, "cache_salt": "s", "user": "u"}),
    ],
)
def test_each_field_is_said_in_chats_words(fields: dict[str, Any], chat_fields: dict[str, Any]) -> None:
    assert asked(**fields) == {"model": "m", "messages": [{"role": "user", "content": "hi"}], **chat_fields}


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, "auto"),
    ],
)
def test_tools_and_their_choice(choice: Any, chosen: Any) -> None:
    told = asked(tools=[FUNCTION], tool_choice=choice, parallel_tool_calls=False)
    assert told["tools"] == [{"type": "function", "function": {"name": "f", "parameters": TOOL, "strict": True}}]
    assert (told["tool_choice"], told["parallel_tool_calls"]) == (chosen, False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
            "tool_choice",
        ),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"store": 1}, "store"),
        ({"instructions": []}, "instructions"),
        ({"include": "all"}, "include"),
    ],
)
def test_what_makes_no_sense_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        asked(**fields)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("messages[3].content", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format", "text.format"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("reasoning_effort", "reasoning.effort"),
        ("verbosity", "text.verbosity"),
        ("tools[2].function.parameters", "tools[2].parameters"),
        ("temperature", "temperature"),
    ],
)
def test_an_error_names_the_field_that_the_client_has(theirs: str, ours: str) -> None:
    told = exchange().told({"message": f"`{theirs}`: is wrong.", "param": theirs, "code": None})
    assert told == {"message": f"`{ours}`: is wrong.", "param": ours, "code": None}


def test_an_answer_is_a_response_of_openais() -> None:
    told = exchange(tools=[FUNCTION], instructions="s", metadata={"a": "b"}, temperature=0.5).document(
        chat("It is sunny.", *CALLS, reasoning="hm", finish="tool_calls")
    )
    response = Response.model_validate(told)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert (response.status, response.output_text, response.instructions) == ("completed", "It is sunny.", "s")
    assert (response.temperature, response.metadata) == (0.5, {"a": "b"})
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (9, 4)
    assert (response.usage.output_tokens, response.usage.output_tokens_details.reasoning_tokens) == (5, 2)


def test_one_that_was_cut_off_says_so_of_itself_and_of_its_last_item() -> None:
    told = exchange().document(chat("a", ("call_00001", "f", '{"ci'), finish="length"))
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in told["output"]] == ["completed", "incomplete"]
    assert streamed(chat("a", finish="length"))[-1]["type"] == "response.incomplete"


def test_log_probabilities_stand_with_the_text() -> None:
    token = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": None}],
    }
    told = exchange(top_logprobs=1).document(chat("a", logprobs={"content": [token]}))
    part = Response.model_validate(told).output[0].content[0]  # type: ignore[union-attr,index]
    assert [(each.token, each.top_logprobs[0].token) for each in part.logprobs or []] == [("a", "b")]  # type: ignore[union-attr]


_words = st.text(max_size=30)
_call = st.tuples(st.text(min_size=8, max_size=12), st.sampled_from(["f", "g"]), _words)


@given(_words, _words, st.lists(_call, max_size=3), st.sampled_from(["stop", "length"]), st.integers(1, 40))
def test_a_streams_last_event_is_the_answer_that_is_not_streamed(
    reasoning: str, content: str, calls: list[tuple[str, str, str]], finish: str, size: int
) -> None:
    document = chat(content, *calls, reasoning=reasoning, finish=finish)
    events = streamed(document, size)
    last = events[-1]["response"]
    assert bare(last) == bare(exchange(stream=True).document(document))
    texts: dict[str, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["item_id"]] = texts.get(event["item_id"], "") + event["delta"]
    told = {
        item["id"]: item.get("arguments", "") or "".join(part["text"] for part in item.get("content", ()))
        for item in last["output"]
    }
    assert {name: text for name, text in told.items() if text} == texts
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]


def test_who_asked_for_no_model_is_told_who_answers() -> None:
    assert exchange(model=None).document(chat("a"))["model"] == "x"
    told = streamed(chat("a"), model=None)
    assert [each["response"]["model"] for each in told if "response" in each] == ["x"] * 3


def test_what_fails_is_told_in_an_event() -> None:
    stream = exchange(stream=True).events()
    (told,) = stream.fail({"message": "none", "code": "x", "type": "server_error"})
    assert told.name == "error"
    stream = exchange(stream=True).events()
    for chunk in chunks(chat("abc"))[:3]:
        stream.feed(chunk)
    (told,) = stream.fail({"message": "gone", "type": "server_error"})
    assert told.name == "response.failed"
    assert told.data["response"]["error"] == {"code": "server_error", "message": "gone"}
    _event.validate_python(told.data)


# What is kept


def test_a_response_goes_on_from_another() -> None:
    stored = Stored()
    first = exchange(stored, instructions="only now").document(chat("one", CALLS[0], reasoning="hm"))
    given = [{"type": "function_call_output", "call_id": "call_00001", "output": "x"}]
    second = exchange(stored, input=given, previous_response_id=first["id"]).document(chat("two"))
    third = exchange(stored, input="more", previous_response_id=second["id"], instructions="s")
    assert [message["role"] for message in third.chat()["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "user",
    ]  # fmt: skip
    assert third.chat()["messages"][2]["tool_calls"][0]["id"] == "call_00001"
    assert json.loads(stored.response(second["id"], ""))["previous_response_id"] == first["id"]


def test_one_that_is_streamed_is_kept_before_its_client_sees_it() -> None:
    stored = Stored()
    made = exchange(stored, stream=True)
    stream = made.events()
    for chunk in chunks(chat("one")):
        stream.feed(chunk)
    assert not stored.has(made.id, "")
    stream.end()
    assert stored.has(made.id, "")


def test_it_is_its_owners_alone() -> None:
    stored = Stored()
    made = exchange(stored, "alice").document(chat("secret"))
    with pytest.raises(NotFoundError):
        exchange(stored, "bob", previous_response_id=made["id"])
    for ask in (stored.response, stored.items, stored.drop):
        with pytest.raises(NotFoundError):
            ask(made["id"], "bob")
    exchange(stored, "alice", previous_response_id=made["id"])


def test_what_shall_not_be_stored_is_not_nor_what_failed() -> None:
    stored = Stored()
    exchange(stored, store=False).document(chat("a"))
    exchange(stored, stream=True).events().fail({})
    assert stored.count == 0


def test_what_is_kept_has_a_bound_and_who_has_most_gives_way() -> None:
    stored = Stored(100_000)
    theirs = exchange(stored, "alice").document(chat("a"))
    for _ in range(100):
        last = exchange(stored, "bob").document(chat("b" * 5000))
        assert stored.size <= 100_000
    assert stored.has(theirs["id"], "alice")
    assert stored.has(last["id"], "bob")
    assert 1 < stored.count < 30
    stored.drop(theirs["id"], "alice")
    assert not stored.has(theirs["id"], "alice")


def test_a_conversation_that_has_lost_its_beginning_is_not_gone_on_with() -> None:
    stored = Stored()
    first = exchange(stored).document(chat("a"))
    second = exchange(stored, previous_response_id=first["id"]).document(chat("b"))
    stored.drop(first["id"], "")
    with pytest.raises(NotFoundError):
        exchange(stored, previous_response_id=second["id"])


def test_a_conversation_that_has_grown_too_long_is_refused_before_it_is_read() -> None:
    stored = Stored()
    many = [{"role": "user", "content": "x"}] * 20_000
    before = exchange(stored, input=many).document(chat("a"))
    exchange(stored, previous_response_id=before["id"])
    with pytest.raises(BadRequestError, match="brackets"):
        for _ in range(5):
            before = exchange(stored, input=many, previous_response_id=before["id"]).document(chat("a"))
