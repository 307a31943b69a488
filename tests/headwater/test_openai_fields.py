"""No field that OpenAI or vLLM has published is ignored in silence where it would change the answer."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.errors import BadRequestError
from headwater.openai.request import StreamOptions
from headwater.openai.unsupported import Unsupported, UnsupportedInChat

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "tests" / "fixtures" / "api" / "request_fields.json").read_text())
REQUESTS: dict[str, type[BaseModel]] = {"chat": ChatCompletionRequest, "completions": CompletionRequest}
BODIES = {
    "chat": {"messages": [{"role": "user", "content": "hello"}], "model": "m"},
    "completions": {"prompt": "hello", "model": "m"},
}
REFUSED = {
    "chat": set(UnsupportedInChat.model_fields),
    "completions": {*Unsupported.model_fields, "prompt_embeds", "thinking_token_budget"},
}


def published(kind: str) -> list[str]:
    return sorted({field for source in PUBLISHED.values() for field in source[kind]})


def without_effect() -> set[str]:
    text = (ROOT / "docs" / "openai-api.md").read_text()
    table = text.partition("## Fields without effect")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {field for cell in first_cells for field in re.findall("`([^`]+)`", cell)}


def parse(kind: str, **fields: object) -> BaseModel:
    return REQUESTS[kind].parse(json.dumps({**BODIES[kind], **fields}).encode())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in REQUESTS for field in published(kind)])
def test_a_published_field_is_done_or_refused_or_documented_as_without_effect(kind: str, field: str) -> None:
    refused = field in REFUSED[kind]
    done = field in REQUESTS[kind].model_fields and not refused
    assert [done, refused, field in without_effect()].count(True) == 1
    if refused:
        with pytest.raises(BadRequestError, match="is not supported") as caught:
            parse(kind, **{field: {"a": ["value"]}})
        assert caught.value.param == field
        parse(kind, **{field: None})


@pytest.mark.parametrize("field", published("stream_options"))
def test_a_published_option_of_streams_is_done_or_documented_as_without_effect(field: str) -> None:
    assert (field in StreamOptions.model_fields) != (f"stream_options.{field}" in without_effect())


def test_what_is_refused_is_of_chat_or_of_both() -> None:
    assert Unsupported.model_fields.keys() <= CompletionRequest.model_fields.keys()
    assert UnsupportedInChat.model_fields.keys() <= ChatCompletionRequest.model_fields.keys()


@pytest.mark.parametrize(
    ("kind", "field", "value", "words"),
    [
        ("chat", "tool_choice", "required", "is only allowed where there are `tools`"),
        (
            "chat",
            "tool_choice",
            {"type": "function", "function": {"name": "f"}},
            "is only allowed where there are `tools`",
        ),
        ("chat", "tool_choice", "any", 'must be "none", "auto", "required" or'),
        ("chat", "store", True, "allowed is false, found true"),
        ("chat", "reasoning_effort", "very", "must be"),
        ("completions", "thinking_token_budget", 3, "is not supported"),
        ("completions", "use_beam_search", 1, "allowed is false, found 1"),
        ("completions", "bad_words", ["x"], 'allowed is [], found ["x"]'),
        ("completions", "prompt_embeds", ["x"], "allowed is []"),
        ("completions", "truncate_prompt_tokens", 0, "must be -1, or at least 1"),
        ("completions", "allowed_token_ids", [], "at least 1 element"),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused(kind: str, field: str, value: object, words: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(kind, **{field: value})
    assert caught.value.param == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"parallel_tool_calls": True, "tool_choice": "auto", "store": False, "modalities": ["text"], "documents": []},
        {"metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "verbosity": "medium", "function_call": "none"},
        {"use_beam_search": False, "spaces_between_special_tokens": True, "bad_words": [], "include_reasoning": True},
    ],
)
def test_a_field_that_asks_for_nothing_is_taken(fields: dict[str, object]) -> None:
    parse("chat", **fields)


def test_tools_that_must_not_be_called_are_not_shown() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert parse("chat", tools=tools, tool_choice="auto").model_dump()["tools"] == tools
    assert parse("chat", tools=tools, tool_choice="none").model_dump()["tools"] is None


def test_tool_choice_names_functions_that_there_are() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
    named = {"type": "function", "function": {"name": "g"}}
    assert parse("chat", tools=tools, tool_choice=named).callable_tools == tools[1:]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    assert parse("chat", tools=tools, tool_choice=allowed).callable_tools == tools[1:]
    for mode in ("auto", "required"):
        with pytest.raises(BadRequestError, match="`tool_choice`"):
            parse(
                "chat", tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": []}}
            )
    with pytest.raises(BadRequestError, match='must name some of `tools`, found "h"') as caught:
        parse("chat", tools=tools, tool_choice={"type": "function", "function": {"name": "h"}})
    assert caught.value.param == "tool_choice"


def test_what_is_said_of_reasoning_reaches_the_template_under_its_names_for_it() -> None:
    def variables(**fields: object) -> object:
        return parse("chat", **fields).template_variables

    assert variables() == {}
    off = {"enable_thinking": False, "thinking": False}
    assert variables(enable_thinking=False) == off
    assert variables(reasoning_effort="none") == {"reasoning_effort": "none"} | off
    on = {"enable_thinking": True, "thinking": True}
    assert variables(reasoning_effort="low") == {"reasoning_effort": "low"} | on
    assert variables(reasoning_effort="low", chat_template_kwargs={"thinking": 1})["thinking"] == 1
