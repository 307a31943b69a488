"""Calls by a real model that was not made for them: held to their schemas, in each API, streamed or not."""

import json
from typing import Any

import anthropic
import jsonschema
import pytest

from tests.system.conftest import MODEL, Stack

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 3, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
CLOCK = {
    "type": "object",
    "properties": {"zone": {"type": "string", "pattern": "^UTC[+-][0-9]{1,2}$"}},
    "required": ["zone"],
}
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}
FUNCTIONS = [{"name": name, "description": f"The {name} of a place.", "parameters": of} for name, of in SCHEMAS.items()]
QUESTION = "How will the weather in Lisbon be for the next three days?"
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "tools": [{"type": "function", "function": each} for each in FUNCTIONS],
    "temperature": 0,
    "max_tokens": 120,
}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("choice", ["required", named("weather"), named("clock")], ids=["required", "weather", "clock"])
def test_a_call_that_must_be_is_of_its_schema_streamed_or_not(stack: Stack, choice: Any) -> None:
    asked = CHAT | {"tool_choice": choice, "parallel_tool_calls": False}
    chats = stack.client.chat.completions
    whole = chats.create(**asked).choices[0]
    ((name, arguments),) = called = [(each.function.name, each.function.arguments) for each in whole.message.tool_calls]
    assert choice == "required" or name == choice["function"]["name"]
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    with chats.stream(**asked) as told:
        streamed = told.get_final_completion().choices[0]
    assert [(each.function.name, each.function.arguments) for each in streamed.message.tool_calls] == called
    assert streamed.finish_reason == "tool_calls"
    assert not streamed.message.content, "a stream begins with an empty text"


def test_several_calls_are_each_of_their_schema(stack: Stack) -> None:
    """So small a model goes on calling until it may not."""
    whole = stack.client.chat.completions.create(**CHAT | {"tool_choice": "required"}).choices[0]
    calls = whole.message.tool_calls
    assert calls
    # The last one may have been cut off.
    for call in calls if whole.finish_reason == "tool_calls" else calls[:-1]:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_the_same_call_is_made_in_each_api(stack: Stack) -> None:
    asked = CHAT | {"tool_choice": named("weather")}
    (call,) = stack.client.chat.completions.create(**asked).choices[0].message.tool_calls
    expected = json.loads(call.function.arguments)
    made = stack.client.responses.create(
        model=MODEL,
        input=QUESTION,
        tools=[{"type": "function", **each} for each in FUNCTIONS],
        tool_choice={"type": "function", "name": "weather"},
        temperature=0,
        max_output_tokens=120,
    )
    (item,) = made.output
    assert (item.name, json.loads(item.arguments)) == ("weather", expected)
    with anthropic.Anthropic(base_url=stack.router.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(
            model=MODEL,
            max_tokens=120,
            messages=[{"role": "user", "content": QUESTION}],
            tools=[
                {"name": name, "description": f"The {name} of a place.", "input_schema": of}
                for name, of in SCHEMAS.items()
            ],
            tool_choice={"type": "tool", "name": "weather"},
            extra_body={"temperature": 0},
        )
    (block,) = message.content
    assert (block.name, block.input, message.stop_reason) == ("weather", expected, "tool_use")
