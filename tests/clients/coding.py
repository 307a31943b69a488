"""The loop of a coding agent: ten turns, each with a call of a tool, and each prompt what the last one was, and more.

In all three APIs, every other turn streamed. What was computed for a turn must not be computed for the next one again.
"""

import json
from collections.abc import Iterator
from typing import Any

from told import URL, V1, with_a_real_model

TURNS = 10
BLOCK = 16
"""Tokens: the cache has no parts of blocks."""
TASK = "List the files of this project, then read them one by one, and mend the first mistake that you find."
PATH = {"type": "object", "properties": {"path": {"type": "string", "maxLength": 24}}, "required": ["path"]}
TOOLS = {"read_file": "Read a file.", "list_files": "List the files of a folder."}


class Cache:
    """Holds each turn to it that its prompt begins with the last one's, and that this came from the cache."""

    def __init__(self) -> None:
        self._before = 0

    def turn(self, prompt: int, cached: int) -> None:
        if self._before and cached < self._before - BLOCK:
            raise AssertionError(f"{cached} tokens of {prompt} were cached; the last prompt had {self._before}")
        if prompt <= self._before:
            raise AssertionError(f"a prompt of {prompt} tokens behind one of {self._before}")
        self._before = prompt


def carried_out(name: str, arguments: dict[str, Any]) -> str:
    """What the tool says. Arguments must be of its schema, whatever the model is."""
    if name not in TOOLS or list(arguments) != ["path"] or not isinstance(arguments["path"], str):
        raise AssertionError(f"a call of {name!r} with {arguments!r}")
    return f"{arguments['path']}: a line of text, and another one"


def turns() -> Iterator[bool]:
    """For each, whether it is streamed."""
    return (bool(turn % 2) for turn in range(TURNS))


@with_a_real_model
def an_agent_in_chats() -> None:
    from openai import OpenAI

    client, cache = OpenAI(base_url=V1, api_key="x"), Cache()
    functions = [{"name": name, "description": told, "parameters": PATH} for name, told in TOOLS.items()]
    asked: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": TASK}],
        "tools": [{"type": "function", "function": each} for each in functions],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    for streamed in turns():
        if streamed:
            with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as told:
                made = told.get_final_completion()
        else:
            made = client.chat.completions.create(**asked)
        cache.turn(made.usage.prompt_tokens, made.usage.prompt_tokens_details.cached_tokens)
        message = made.choices[0].message
        (call,) = message.tool_calls
        output = carried_out(call.function.name, json.loads(call.function.arguments))
        kept = message.model_dump(include={"role", "content", "tool_calls"})
        asked["messages"] += [kept, {"role": "tool", "tool_call_id": call.id, "content": output}]


@with_a_real_model
def an_agent_in_responses() -> None:
    from openai import OpenAI

    client, cache = OpenAI(base_url=V1, api_key="x"), Cache()
    functions = [
        {"type": "function", "name": name, "description": told, "parameters": PATH} for name, told in TOOLS.items()
    ]
    asked: dict[str, Any] = {"model": "m", "input": TASK, "tools": functions, "tool_choice": "required"}
    asked["parallel_tool_calls"] = False
    for streamed in turns():
        if streamed:
            with client.responses.stream(**asked) as told:
                made = told.get_final_response()
        else:
            made = client.responses.create(**asked)
        cache.turn(made.usage.input_tokens, made.usage.input_tokens_details.cached_tokens)
        (call,) = (item for item in made.output if item.type == "function_call")
        output = carried_out(call.name, json.loads(call.arguments))
        asked["input"] = [{"type": "function_call_output", "call_id": call.call_id, "output": output}]
        asked["previous_response_id"] = made.id


@with_a_real_model
def an_agent_in_messages() -> None:
    from anthropic import Anthropic

    client, cache = Anthropic(base_url=URL, api_key="x"), Cache()
    asked: dict[str, Any] = {
        "model": "m",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": TASK}],
        "tools": [{"name": name, "description": told, "input_schema": PATH} for name, told in TOOLS.items()],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    for streamed in turns():
        if streamed:
            with client.messages.stream(**asked) as told:
                made = told.get_final_message()
        else:
            made = client.messages.create(**asked)
        cached = made.usage.cache_read_input_tokens or 0
        cache.turn(made.usage.input_tokens + cached, cached)
        (call,) = (block for block in made.content if block.type == "tool_use")
        result = {"type": "tool_result", "tool_use_id": call.id, "content": carried_out(call.name, call.input)}
        asked["messages"] += [{"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
