"""Whatever stands in a request or an answer, it is told, or said to be wrong in words: nothing else is ever raised."""

import copy
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from headwater.apis import Exchange
from headwater.apis.base import BrokenAnswerError
from headwater.apis.messages import CountTokens, Messages
from headwater.apis.responses import Responses
from headwater.apis.responses.stored import Stored
from headwater.openai.errors import APIError
from tests.headwater.chats import TOOL, USAGE, chat, chunks

RESULT = {"type": "text", "text": "x"}
MESSAGES: dict[str, Any] = {
    "model": "m", "max_tokens": 5, "stream": True, "system": [{"type": "text", "text": "s"}], "stop_sequences": ["a"],
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "a"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [RESULT]}]},
    ],
    "tools": [{"name": "f", "input_schema": TOOL}], "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled"}, "metadata": {"user_id": "u"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": TOOL}}, "chat_template_kwargs": {},
}  # fmt: skip
RESPONSES: dict[str, Any] = {
    "model": "m", "stream": True, "instructions": "s", "max_output_tokens": 5, "store": True, "metadata": {"a": "b"},
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "u"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}], "content": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "message", "role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": TOOL, "strict": True}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "reasoning": {"effort": "low"}, "include": ["x"], "top_logprobs": 1, "parallel_tool_calls": False,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": TOOL}, "verbosity": "low"},
    "truncation": "disabled",
}  # fmt: skip
_TOKEN = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -1.0}]}
CHAT = chat("a", ("call_00001", "f", "{}"), reasoning="hm", logprobs={"content": [_TOKEN]})

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in children for place in _places(child, (*at, key)))][0 if at else 1 :]


def altered(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """With something else in one or two places of it."""

    def change(places: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
        made = copy.deepcopy(document)
        for place, value in places:
            inner: Any = made
            try:
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
            except (KeyError, IndexError, TypeError):
                continue  # The first change took it away.
        return made

    return st.lists(st.tuples(st.sampled_from(_places(document)), _json), min_size=1, max_size=2).map(change)


def goes(exchange: Exchange) -> None:
    json.dumps(exchange.chat())
    json.dumps(exchange.document(CHAT))
    if exchange.streams:
        events = exchange.events()
        told = [each for chunk in chunks(CHAT) for each in events.feed(chunk)] + events.end()
        json.dumps([each.data for each in told])


@given(altered(MESSAGES))
def test_any_request_for_a_message_is_read_or_refused(body: dict[str, Any]) -> None:
    try:
        goes(Messages(body))
        CountTokens(body)
    except APIError as error:
        assert error.status in (400, 404)


@given(altered(RESPONSES))
@example({**RESPONSES, "tools": False})
def test_any_request_for_a_response_is_read_or_refused(body: dict[str, Any]) -> None:
    try:
        goes(Responses(body, Stored(), ""))
    except APIError as error:
        assert error.status in (400, 404)


@given(altered(CHAT))
def test_any_answer_is_told_or_said_to_be_broken(document: dict[str, Any]) -> None:
    for exchange in (Messages(MESSAGES), Responses(RESPONSES, Stored(), "")):
        try:
            json.dumps(exchange.document(document))
        except BrokenAnswerError:
            continue


@given(st.lists(st.sampled_from([*chunks(CHAT), {"usage": USAGE}]).flatmap(altered), max_size=6))
def test_any_chunk_is_told_or_said_to_be_broken(said: list[dict[str, Any]]) -> None:
    for exchange in (Messages(MESSAGES), Responses(RESPONSES, Stored(), "")):
        events = exchange.events()
        try:
            for chunk in said:
                json.dumps([each.data for each in events.feed(chunk)])
            json.dumps([each.data for each in events.end()])
        except BrokenAnswerError:
            json.dumps([each.data for each in events.fail({"message": "x", "code": 5})])
