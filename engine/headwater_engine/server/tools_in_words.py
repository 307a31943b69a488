"""Tools for a template that has no place for them: they are described in words, and calls and results are text.

Calls are written in the Hermes format (`formats/hermes.py`), which most open models have met in training, unless the
template has a way of its own to write them.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

Message = dict[str, Any]

_INTRODUCTION: Final = """You can call functions. They are described within <tools></tools>, one on a line, as JSON:
<tools>
{tools}
</tools>
To call one, write its name and its arguments in this way, and then stop:
{call}
What it returns comes back to you."""
_CALL: Final = """<tool_call>
{{"name": {name}, "arguments": {arguments}}}
</tool_call>"""
EXAMPLE: Final = _CALL.format(name='"NAME"', arguments='{"ARGUMENT": "VALUE"}')


def with_tools(messages: Sequence[Message], tools: Sequence[Any], call: str, *, takes_system: bool) -> list[Message]:
    """`messages` with `tools` described. `call`: how one is called. `takes_system`: whether the template does."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    words = _INTRODUCTION.format(tools=lines, call=call)
    told = list(messages)
    place = 0
    if told[0]["role"] in ("system", "developer"):
        words = f"{_text(told[0])}\n\n{words}"
    elif takes_system:
        told.insert(0, {"role": "system"})
    else:
        place = next((at for at, message in enumerate(told) if message["role"] == "user"), 0)
        words = f"{words}\n\n{_text(told[place])}"
    told[place] = {**told[place], "content": words}
    return told


def calls_in_words(messages: Iterable[Message]) -> list[Message]:
    """`messages` with calls and results as text, for a template that leaves them out."""
    told: list[Message] = []
    behind_result = False
    for message in messages:
        is_result = message["role"] in ("tool", "function")
        if is_result and behind_result:
            # As one message, since many templates want users and assistants by turns.
            told[-1]["content"] += f"\n{_result(message)}"
        elif is_result:
            told.append({"role": "user", "content": _result(message)})
        elif calls := _calls(message):
            content = "\n".join(filter(None, [_text(message), *map(_call, calls)]))
            rest = {name: value for name, value in message.items() if name not in ("tool_calls", "function_call")}
            told.append({**rest, "content": content})
        else:
            told.append(message)
        behind_result = is_result
    return told


def _result(message: Message) -> str:
    return f"<tool_response>\n{_text(message)}\n</tool_response>"


def _calls(message: Message) -> list[dict[str, Any]]:
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return functions + ([message["function_call"]] if message.get("function_call") else [])


def _call(function: dict[str, Any]) -> str:
    arguments = function.get("arguments") or "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return _CALL.format(name=json.dumps(function["name"], ensure_ascii=False), arguments=arguments)


def _text(message: Message) -> str:
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or part.get("refusal") or "" for part in content)
