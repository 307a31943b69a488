"""TGI's dialect: what it recorded as refused is written as it takes it, and its answers become what clients know."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from headwater.backends.dialects import Translation, UnsupportedRequestError
from headwater.backends.dialects.tgi import TGIDialect

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}

FIXTURES = Path(__file__).parent.parent / "fixtures" / "tgi-3.3.7"


def written(path: str, **members: Any) -> dict[str, Any]:
    return {name: json.loads(bytes(raw)) for name, raw in raws(path, **members).items()}


def raws(path: str, **members: Any) -> dict[str, Raw]:
    given = msgspec.json.decode(json.dumps(members), type=dict[str, Raw])
    return TGIDialect().request(path, given)


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ({"stream": None, "stream_options": None, "seed": None}, {}),
        ({"stop": "five"}, {"stop": ["five"]}),
        ({"stop": ["a", "b", "c", "d"]}, {"stop": ["a", "b", "c", "d"]}),
        ({"top_p": 1.0}, {}),
        ({"top_p": 1}, {}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"max_tokens": 4, "max_completion_tokens": 3}, {"max_completion_tokens": 3}),
        ({"logit_bias": {}, "n": 1}, {}),
        ({"presence_penalty": 0, "frequency_penalty": 0.0}, {"frequency_penalty": 0.0}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "p", "schema": SCHEMA, "strict": True},
                }
            },
            {"response_format": {"type": "json_schema", "value": {"name": "p", "schema": SCHEMA}}},
        ),
        (
            {"response_format": {"type": "regex", "value": "[0-9]"}},
            {"response_format": {"type": "regex", "value": "[0-9]"}},
        ),
        ({"own": {"a": [1, None]}, "temperature": 0}, {"own": {"a": [1, None]}, "temperature": 0}),
    ],
)
def test_a_request_is_written_as_tgi_takes_it(sent: dict[str, Any], taken: dict[str, Any]) -> None:
    assert written(CHAT, **sent) == taken


@pytest.mark.parametrize(
    ("path", "sent", "param"),
    [
        (CHAT, {"n": 2}, "n"),
        (CHAT, {"stop": list("abcde")}, "stop"),
        (CHAT, {"stop": "x" * 1000}, "stop"),
        (CHAT, {"logit_bias": {"5": 1}}, "logit_bias"),
        (CHAT, {"top_k": 5}, "top_k"),
        (CHAT, {"presence_penalty": 0.5}, "presence_penalty"),
        (COMPLETIONS, {"prompt": "a", "presence_penalty": -0.5}, "presence_penalty"),
        (CHAT, {"thinking_token_budget": 5}, "thinking_token_budget"),
        (CHAT, {"enable_thinking": False}, "enable_thinking"),
        (COMPLETIONS, {"prompt": "a", "min_tokens": 5}, "min_tokens"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (COMPLETIONS, {"prompt": "a", "echo": True}, "echo"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 2}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": [1, 2]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], [2]]}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2}, "best_of"),
        ("/tokenize", {"messages": []}, "messages"),
    ],
)
def test_what_tgi_cannot_do_or_would_ignore_is_named(path: str, sent: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedRequestError) as raised:
        written(path, **sent)
    assert raised.value.param == param


def test_values_that_ask_for_nothing_are_left_out() -> None:
    assert written(COMPLETIONS, prompt=["a", "b"], echo=False, suffix="", n=1.0) == {"prompt": ["a", "b"]}
    assert written("/tokenize", prompt="a", model="m") == {"inputs": "a", "model": "m"}


def test_fields_of_others_that_ask_for_nothing_go_to_tgi_which_ignores_them() -> None:
    fields = {"top_k": -1, "skip_special_tokens": True, "user": "u", "unheard": 1}
    assert written(CHAT, **fields) == fields
    assert written(COMPLETIONS, prompt="a", repetition_penalty=1.2) == {"prompt": "a", "repetition_penalty": 1.2}


PART = {"type": "text", "text": "I look"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "{calls}"),
        ({"content": None}, "{calls}"),
        ({"content": ""}, "{calls}"),
        ({"content": "I look"}, "I look\n{calls}"),
        ({"content": [PART]}, [PART, {"type": "text", "text": "{calls}"}]),
    ],
)
def test_calls_of_before_are_told_to_tgi_as_text_whatever_is_said_beside_them(
    content: dict[str, Any], told: str | list[dict[str, str]]
) -> None:
    function = {"name": "find", "arguments": '{"city":"Bern"}'}
    calls = [{"id": "c", "type": "function", "function": function}]
    before, after = {"role": "user", "content": "hi"}, {"role": "tool", "tool_call_id": "c", "content": "There."}
    messages = [before, {"role": "assistant", "tool_calls": calls} | content, after]
    [first, called, last] = written(CHAT, messages=messages)["messages"]
    assert (first, last) == (before, after)
    as_text = json.dumps(calls, separators=(",", ":"))
    whole = [PART, {"type": "text", "text": as_text}] if isinstance(told, list) else told.format(calls=as_text)
    assert called == {"role": "assistant", "content": whole}


def test_a_message_without_calls_is_as_it_was() -> None:
    messages = [{"role": "assistant", "content": "Hi", "tool_calls": []}, "odd", {"role": "user", "content": "hi"}]
    assert written(CHAT, messages=messages)["messages"] == [{"role": "assistant", "content": "Hi"}, *messages[1:]]
    assert written(CHAT, messages={"tool_calls": [1]})["messages"] == {"tool_calls": [1]}


def test_what_is_not_read_is_not_changed() -> None:
    body = b'{"messages": [ {"content":"\\u00e9", "x": 1.0e2} ],"stop":"a"}'
    members = TGIDialect().request(CHAT, msgspec.json.decode(body, type=dict[str, Raw]))
    assert bytes(members["messages"]) == b'[ {"content":"\\u00e9", "x": 1.0e2} ]'


# Answers


def translation(*stops: str) -> Translation:
    return TGIDialect().translation(CHAT, raws(CHAT, stop=list(stops)), "asked", "req-1")


def chunk(content: str | None = None, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    delta = {"role": "assistant", **({} if content is None else {"content": content}), **delta}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "id": "", "model": "/models/x", "choices": [choice], "usage": None}


def test_an_answer_has_the_name_an_id_and_the_words_of_openai() -> None:
    said = {
        "object": "chat.completion", "id": "", "model": "/models/x",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "1. 1\n2. 2\n3"}, "finish_reason": "stop_sequence"}
        ],
    }  # fmt: skip
    told = translation("five", "3").document(said)
    assert (told["model"], told["id"]) == ("asked", "req-1")
    assert told["choices"][0]["message"]["content"] == "1. 1\n2. 2\n"
    assert told["choices"][0]["finish_reason"] == "stop"


def test_a_text_and_a_list_of_tokens_too() -> None:
    said = {"choices": [{"index": 0, "text": "a. b", "finish_reason": "stop_sequence"}]}
    assert translation(".").document(said)["choices"] == [{"index": 0, "text": "a", "finish_reason": "stop"}]
    tokens = [{"id": 19556, "text": "Hello", "start": 0, "stop": 5}, {"id": 28, "text": ",", "start": 5, "stop": 6}]
    assert translation().document(tokens) == {"count": 2, "tokens": [19556, 28]}


def test_an_answer_that_calls_a_tool_ends_so() -> None:
    message = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function"}]}
    said = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    assert translation().document(said)["choices"][0]["finish_reason"] == "tool_calls"


def test_a_stream_that_calls_a_tool_and_does_not_say_how_it_ends_is_ended() -> None:
    it = translation()
    call = [{"index": 0, "id": "0", "function": {"name": "w", "arguments": ""}}]
    assert it.event(chunk(tool_calls=call))[0]["choices"][0]["finish_reason"] is None
    [end] = it.end()
    assert end["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}]
    assert (end["model"], end["id"], end["object"]) == ("asked", "req-1", "chat.completion.chunk")
    it = translation()
    assert it.event(chunk(reason="stop", tool_calls=call))[0]["choices"][0]["finish_reason"] == "tool_calls"
    assert it.end() == []


def test_the_id_of_a_call_is_told_once_in_a_stream() -> None:
    """By what TGI recorded: clients put the pieces together, and would get an id of eleven zeros."""
    recorded = (FIXTURES / "chat-tools-stream.txt").read_text()
    events = [json.loads(line[6:]) for line in recorded.splitlines() if line.startswith("data: {")]
    it = translation()
    calls = [each["choices"][0]["delta"]["tool_calls"][0] for event in events for each in it.event(event)]
    assert [call.get("id") for call in calls] == ["0"] + [None] * (len(events) - 1)
    assert [call["function"].get("name") for call in calls] == ["get_weather"] + [None] * (len(events) - 1)
    assert all("id" not in call and "name" not in call["function"] for call in calls[1:])
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Paris"}


def test_texts_that_go_on_have_no_reason_to_end() -> None:
    """TGI says "" for it: what is held back of a stop string must wait on, and a broken stream must not look whole."""
    it, said = translation("ab"), []
    for text, reason in (("x a", ""), ("b", ""), (" y", "length")):
        said += it.event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})
    [*going_on, last] = [event["choices"][0] for event in said]
    assert all(choice["finish_reason"] is None for choice in going_on)
    assert "".join(choice["text"] for choice in going_on) == "x "
    assert last["finish_reason"] == "length"


TEXT = st.text("ab.", max_size=30)


@given(TEXT, st.lists(st.text("ab.", min_size=1, max_size=4), max_size=4), st.data())
def test_a_stream_says_what_comes_before_the_first_stop_string(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if places:
        # As TGI does: it ends with the token in which a stop string ends.
        end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        text = text[: data.draw(st.integers(end, len(text)))] if end < len(text) else text
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    if places:
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        cuts = [cut for cut in cuts if cut < ends]
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    it, told, reasons = translation(*stops), "", []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        reason = ("stop_sequence" if places else "length") if last else None
        for event in it.event(chunk(piece, reason)):
            told += event["choices"][0]["delta"].get("content") or ""
            reasons.append(event["choices"][0]["finish_reason"])
    assert told == text[: min(places, default=len(text))]
    assert [each for each in reasons if each] == ["stop" if places else "length"]


@pytest.mark.parametrize(
    "said", [[], [1], {}, {"choices": 5}, {"choices": [5]}, {"choices": [{}]}, {"error": "no"}, "x", None, 5]
)
def test_odd_answers_pass(said: Any) -> None:
    translation("a").document(json.loads(json.dumps(said)))
    if isinstance(said, dict):
        translation("a").event(json.loads(json.dumps(said)))
