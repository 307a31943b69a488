"""Anthropic's messages over chat completions: requests, answers, streams, each held to the client's own types."""

import json
from typing import Any

import pytest
from anthropic.types import DirectCaller, Message, RawMessageStreamEvent, ToolUseBlock, Usage
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from headwater.apis import ApiEvent
from headwater.apis.base import BrokenAnswerError
from headwater.apis.messages import CountTokens, Messages
from headwater.openai.errors import BadRequestError
from tests.headwater.chats import TOOL, USAGE, chat, chunks

USER = [{"role": "user", "content": "hi"}]
CALLS = (("call_00001", "find", '{"city":"Bern"}'), ("call_00002", "find", "{}"))
_event = TypeAdapter[RawMessageStreamEvent](RawMessageStreamEvent)


def exchange(**fields: Any) -> Messages:
    return Messages({"model": "m", "max_tokens": 10, "messages": USER, **fields})


def asked(**fields: Any) -> dict[str, Any]:
    return exchange(**fields).chat()


def accumulated(document: dict[str, Any], size: int) -> Message:
    """The events put together. One block is open at a time, and they come in their order."""
    stream = exchange(stream=True).events()
    message: dict[str, Any] = {}
    written: list[str] = []
    for told in [each for chunk in chunks(document, size) for each in stream.feed(chunk)] + stream.end():
        event = told.data
        _event.validate_python(event)
        match told.name:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                written = []
            case "content_block_delta":
                assert event["index"] == len(message["content"]) - 1
                ((name, piece),) = [each for each in event["delta"].items() if each[0] != "type"]
                if name == "partial_json":
                    written.append(piece)
                else:
                    message["content"][-1][name] += piece
            case "content_block_stop":
                if message["content"][-1]["type"] == "tool_use":
                    message["content"][-1]["input"] = json.loads("".join(written) or "{}")
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    assert told.name == "message_stop"
    return Message.model_validate(message)


def same(one: Message, other: Message) -> bool:
    """But for the id, which is made up for each."""
    return one.model_copy(update={"id": ""}) == other.model_copy(update={"id": ""})


def test_a_conversation_becomes_messages_of_a_chat() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "t1", "name": "find", "input": {"city": "Zürich"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "and?"},
                picture,
            ],
        },
    ]
    assert asked(system=[{"type": "text", "text": "s"}], messages=conversation)["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "b",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Zürich"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
    ]


THINKS = {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}
"""Templates know the one or the other."""
THINKS_NOT = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}


@pytest.mark.parametrize(
    ("fields", "chat_fields"),
    [
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stop_sequences": ["a"], "top_k": 5, "temperature": 0.5}, {"stop": ["a"], "top_k": 5, "temperature": 0.5}),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto"}, {"user": "u"}),
        ({"thinking": {"type": "disabled"}}, THINKS_NOT),
        ({"thinking": {"type": "enabled"}}, THINKS),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, THINKS | {"thinking_token_budget": 5}),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, THINKS),  # max_tokens says that
        (
            {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": False, "a": 1}},
            {"chat_template_kwargs": {"enable_thinking": True, "thinking": False, "a": 1}},
        ),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"cache_salt": "s"}, {"cache_salt": "s"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": TOOL}}},
            {"response_format": {
                "type": "json_schema", "json_schema": {"name": "answer", "schema": TOOL, "strict": True},
            }},
        ),
    ],
)  # fmt: skip
def test_each_field_is_said_in_chats_words(fields: dict[str, Any], chat_fields: dict[str, Any]) -> None:
    assert asked(**fields) == {"model": "m", "max_tokens": 10, "messages": USER, **chat_fields}


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
    ],
)
def test_tools_and_their_choice(choice: dict[str, Any], chosen: dict[str, Any]) -> None:
    told = asked(tools=[{"name": "f", "description": "d", "input_schema": TOOL}], tool_choice=choice)
    assert told["tools"] == [{"type": "function", "function": {"name": "f", "description": "d", "parameters": TOOL}}]
    assert {name: told[name] for name in chosen} == chosen


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"tools": [{}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": "many"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": True}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"stream": "yes"}, "stream"),
        ({"system": 5}, "system"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
    ],
)
def test_what_makes_no_sense_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        asked(**fields)
    assert raised.value.param == param


def test_an_answer_goes_on_where_the_assistants_last_message_ends() -> None:
    begun = {"role": "assistant", "content": "The answer is ("}
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    for content in (begun["content"], [{"type": "text", "text": begun["content"]}]):
        conversation = [*USER, {"role": "assistant", "content": content}]
        told = asked(messages=conversation)
        assert (told["messages"][-1], told | goes_on) == (begun, told)
        counted = CountTokens({"model": "m", "messages": conversation}).chat()
        assert counted | goes_on == counted
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    for content in ("", [], [call], [{"type": "text", "text": "a"}, call]):
        assert "continue_final_message" not in asked(messages=[*USER, {"role": "assistant", "content": content}])
    assert "continue_final_message" not in asked()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("messages[3].content", "messages"),
        ("stop[0]", "stop_sequences[0]"),
        ("stop_token_ids", "stop_token_ids"),
        ("max_tokens", "max_tokens"),
        ("response_format.json_schema.schema", "output_config.format.schema"),
        ("tools[2].function.parameters", "tools[2].input_schema"),
        ("tools[2].function.name", "tools[2].name"),
        ("thinking_token_budget", "thinking.budget_tokens"),
    ],
)
def test_an_error_names_the_field_that_the_client_has(theirs: str, ours: str) -> None:
    told = exchange().told({"message": f"`{theirs}`: is wrong; see `{theirs}`.", "param": theirs, "code": None})
    assert told == {"message": f"`{ours}`: is wrong; see `{ours}`.", "param": ours, "code": None}


def test_an_answer_is_a_message_of_anthropics() -> None:
    told = exchange().document(chat("It is sunny.", *CALLS, reasoning="hm", finish="tool_calls"))
    message = Message.model_validate(told)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (message.stop_reason, message.model, message.role) == ("tool_use", "m", "assistant")
    assert message.content[2] == ToolUseBlock(
        type="tool_use", id="call_00001", name="find", input={"city": "Bern"}, caller=DirectCaller(type="direct")
    )
    # All fields are there that the schema wants, those that nobody here knows as null.
    assert told.keys() >= Message.model_fields.keys() - {"diagnostics"}
    assert told["usage"].keys() >= Usage.model_fields.keys() - {"speed"}
    # What was cached is not counted twice.
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (5, 4)
    assert message.usage.output_tokens == USAGE["completion_tokens"]


@pytest.mark.parametrize(
    ("document", "reason", "sequence"),
    [
        (chat("a"), "end_turn", None),
        (chat("a", finish="length"), "max_tokens", None),
        (chat("a", stop_reason="END"), "stop_sequence", "END"),
        (chat("a", stop_reason=5), "end_turn", None),
        (chat("a", finish="content_filter"), "refusal", None),
        (chat(None, CALLS[0]), "tool_use", None),
    ],
)
def test_why_it_stopped(document: dict[str, Any], reason: str, sequence: str | None) -> None:
    told = exchange().document(document)
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, sequence)
    assert same(accumulated(document, 5), Message.model_validate(told))


_words = st.text(max_size=30)
_call = st.tuples(st.text(min_size=8, max_size=12), st.sampled_from(["f", "g"]), st.dictionaries(_words, _words))


@given(_words, _words, st.lists(_call, max_size=3), st.integers(1, 40))
def test_a_streams_events_put_together_are_the_answer_that_is_not_streamed(
    reasoning: str, content: str, calls: list[tuple[str, str, dict[str, str]]], size: int
) -> None:
    written = [(one, name, json.dumps(arguments)) for one, name, arguments in calls]
    document = chat(content, *written, reasoning=reasoning)
    assert same(accumulated(document, size), Message.model_validate(exchange().document(document)))


def test_a_call_that_was_cut_off_is_marked_and_a_broken_one_is_an_error() -> None:
    half = ("call_00001", "find", '{"city":"Be')
    told = exchange().document(chat(None, half, finish="length"))
    assert (told["stop_reason"], told["content"][0]["input"]) == ("max_tokens", {})
    with pytest.raises(BrokenAnswerError):
        exchange().document(chat(None, half))


@pytest.mark.parametrize("said", [None, [], {}, {"choices": []}, {"choices": [5]}, "hi"])
def test_what_is_no_chat_completion_is_told_so(said: Any) -> None:
    with pytest.raises(BrokenAnswerError):
        exchange().document(said)


def test_pieces_of_two_calls_that_are_mixed_break_the_stream() -> None:
    def piece(number: int, **call: Any) -> dict[str, Any]:
        delta = {"tool_calls": [{"index": number, **call}]}
        return {"choices": [{"index": 0, "delta": delta}]}

    stream = exchange(stream=True).events()
    stream.feed(piece(0, id="call_00001", function={"name": "f"}))
    stream.feed(piece(1, id="call_00002", function={"name": "f"}))
    with pytest.raises(BrokenAnswerError, match="mixed"):
        stream.feed(piece(0, function={"arguments": "{"}))


def test_an_error_within_a_stream_is_an_event() -> None:
    stream = exchange(stream=True).events()
    stream.feed(chunks(chat("a"))[0])
    (told,) = stream.fail({"message": "gone", "type": "server_error"})
    assert told == ApiEvent(
        "error", {"type": "error", "error": {"type": "api_error", "message": "gone"}, "request_id": None}
    )
    assert stream.over


def test_tokens_are_counted_of_the_conversation_as_a_chat_has_it() -> None:
    count = CountTokens({"model": "m", "messages": USER, "system": "s", "tools": [{"name": "f", "input_schema": TOOL}]})
    assert count.asked == "/tokenize"
    assert set(count.chat()) == {"model", "messages", "tools"}
    assert count.document({"count": 7, "tokens": []}) == {"input_tokens": 7}
    with pytest.raises(BrokenAnswerError):
        count.document({"tokens": []})


def test_the_prompts_tokens_are_told_at_once_where_the_server_tells_them_with_the_first_token() -> None:
    options = {"continuous_usage_stats": True}
    told = exchange(stream=True, stream_options=options)
    assert told.chat()["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}
    first, *_ = chunks(chat("Hi"))
    (event, *_) = told.events().feed(first | {"usage": USAGE})
    assert event.name == "message_start"
    usage = event.data["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 4)


def test_who_asked_for_no_model_is_told_who_answers() -> None:
    assert exchange(model=None).document(chat("a"))["model"] == "x"
    stream = exchange(model=None, stream=True).events()
    start = next(each for chunk in chunks(chat("a")) for each in stream.feed(chunk) if each.name == "message_start")
    assert start.data["message"]["model"] == "x"
