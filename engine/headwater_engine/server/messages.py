"""From OpenAI's messages to what the model's own chat template wants of them.

The API is one, and templates are many: most want a message's content as text, some as a list of parts; most want the
arguments of a call as a mapping, some as the text that the API has. What a template does not expect it seldom refuses:
it leaves it out, or writes it twice escaped. So each template is tried once, with a few made-up conversations, and what
shows in them says what it wants.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

Message = dict[str, Any]
Render = Callable[[Sequence[Message]], str]
"""Raises anything: a template is a program."""

_WORD, _RULE, _NAME, _KEY, _VALUE = "wordprobe", "ruleprobe", "nameprobe", "keyprobe", "valueprobe"
_DEVELOPER = re.compile("""['"]developer['"]""")
"""The role, where a template asks for it; some only write the word."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
"""What servers and templates call the reasoning before an answer."""


@dataclass(frozen=True, slots=True)
class Style:
    """What one template wants."""

    parts: bool = False
    """Content is a list of parts; else a string."""
    text_arguments: bool = False
    """The arguments of a call are JSON text; else a mapping."""
    no_content: str | list[Any] | None = ""
    """The content of a message that only calls tools."""
    developer: bool = False
    """The role `developer` is known; else it is `system`."""


def learn(source: str, render: Render) -> Style:
    """What the template, whose text is `source`, wants: what shows when it is given a try."""
    parts = not _shows(render, [_user(_WORD)], _WORD) and _shows(render, [_user(_parts([_WORD]))], _WORD)
    # One that writes any role as it comes does not know this one: neither does its model.
    developer = _DEVELOPER.search(source) is not None
    developer = developer and _shows(render, adapted(_INSTRUCTED, Style(parts, developer=True)), _RULE)
    empty: tuple[str | list[Any] | None, ...] = ([], None) if parts else ("", None)
    for text_arguments, no_content in product((False, True), empty):
        style = Style(parts, text_arguments, no_content, developer)
        if _shows(render, adapted(_CALL, style), _NAME, _VALUE):
            return style
    return Style(parts, False, empty[0], developer)


def calls_as(render: Render, render_prompt: Render, style: Style) -> list[str]:
    """What the template writes of a call to what is PROBED, in one or two ways to look at it; nothing if it does not.

    `render_prompt`: up to where an answer begins.
    """
    found = []
    for each in (render_prompt, render):
        try:
            whole, before = render(adapted(_CALL[:2], style)), each(adapted(_CALL[:1], style))
        except Exception:  # it has no calls
            continue
        if whole.startswith(before) and _NAME in whole[len(before) :]:
            found.append(whole[len(before) :])
    return found


def shows_tools(render: Render, style: Style) -> bool:
    """Whether a prompt holds the TOOL that `render` is given."""
    return _shows(render, adapted([_user(_WORD)], style), _NAME, _WORD)


def takes_system(render: Render, style: Style) -> bool:
    """Whether the template has a place for instructions."""
    return _shows(render, adapted([{"role": "system", "content": _RULE}, _user(_WORD)], style), _RULE, _WORD)


def adapted(messages: Iterable[Message], style: Style) -> list[Message]:
    """`messages` of the API, checked by `headwater.openai.chat`, as the template wants them."""
    return [_adapted(message, style) for message in _with_tools(messages)]


def _with_tools(messages: Iterable[Message]) -> Iterator[Message]:
    """Functions, as the API once had them, as tools; and each result with the name of what was called."""
    names: dict[str, str] = {}
    call_id = ""
    for index, given in enumerate(messages):
        message = dict(given)
        if function := message.pop("function_call", None):
            message["tool_calls"] = [{"id": f"call{index:05}", "function": function}]
        if message["role"] == "function":
            message |= {"role": "tool", "tool_call_id": call_id}
        for call in message.get("tool_calls", ()):
            call_id = call.get("id", "")
            names[call_id] = call["function"]["name"]
        if message["role"] == "tool" and (name := names.get(message.get("tool_call_id", ""))):
            message.setdefault("name", name)
        yield message


def _adapted(message: Message, style: Style) -> Message:
    wanted = {name: value for name, value in message.items() if name != "refusal"}
    if message["role"] == "developer" and not style.developer:
        wanted["role"] = "system"
    if reasoning := next((message[name] for name in _REASONING if message.get(name)), None):
        wanted |= {"reasoning_content": reasoning, "thinking": message.get("thinking", reasoning)}
    calls = wanted.pop("tool_calls", None)
    if calls:  # an empty list is to some templates a call
        wanted["tool_calls"] = [_call(call, style) for call in calls]
    texts = _texts(message)
    if calls and not any(texts):
        wanted["content"] = style.no_content
    else:
        # Parts are joined by line breaks, as vLLM does.
        wanted["content"] = _parts(texts) if style.parts else "\n".join(texts)
    return wanted


def _texts(message: Message) -> list[str]:
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, str):
        return [content]
    return [part["refusal"] if part["type"] == "refusal" else part["text"] for part in content]


def _call(call: dict[str, Any], style: Style) -> dict[str, Any]:
    given = call["function"].get("arguments", "")
    arguments: str | dict[str, Any]
    if style.text_arguments:
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    else:
        arguments = _mapping(given)
    return {"type": "function"} | call | {"function": call["function"] | {"arguments": arguments}}


def _mapping(arguments: str | dict[str, Any]) -> str | dict[str, Any]:
    """What is no JSON object stays text: models write such calls, and clients send them back."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _shows(render: Render, messages: Sequence[Message], *words: str) -> bool:
    try:
        text = render(messages)
    except Exception:  # not what it wants
        return False
    return all(word in text for word in words) and f"'{_KEY}'" not in text  # as Python writes a mapping, not JSON


def _user(content: str | list[Any]) -> Message:
    return {"role": "user", "content": content}


def _parts(texts: Iterable[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


_INSTRUCTED: list[Message] = [{"role": "developer", "content": _RULE}, _user(_WORD)]
_CALL: list[Message] = [
    _user(_WORD),
    {
        "role": "assistant",
        # Mistral's templates refuse ids that are shorter.
        "tool_calls": [{"id": "call00000", "function": {"name": _NAME, "arguments": json.dumps({_KEY: _VALUE})}}],
    },
    {"role": "tool", "tool_call_id": "call00000", "content": _WORD},
]
PROBED = _NAME, {_KEY: _VALUE}
"""What `calls_as` has called: a name and its arguments."""
TOOL = {"type": "function", "function": {"name": _NAME, "description": "", "parameters": {"properties": {}}}}
"""For templates that are for conversations with tools: some do nothing without any."""
