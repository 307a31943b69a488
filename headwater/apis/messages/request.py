"""A request for a message, as one for a chat completion."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from headwater.apis import tools
from headwater.apis.reading import an_object, flag, none_of, not_done, objects, text, wrong

_READ: Final = frozenset(
    ("messages", "system", "tools", "tool_choice", "stop_sequences", "thinking", "metadata", "output_config",
     "output_format", "service_tier", "stream", "max_tokens", "container", "mcp_servers", "context_management",
     "inference_geo", "betas", "cache_control", "n")
)  # fmt: skip
"""Members that are no chat completion's, or mean something else there. Others go on as they are."""
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}

Json = dict[str, Any]


def chat_of(body: Mapping[str, Any]) -> Json:
    """Raises BadRequestError."""
    none_of(body, ("container", "mcp_servers"))
    chat: Json = {name: value for name, value in body.items() if name not in _READ}
    if body.get("max_tokens") is None:
        raise wrong("max_tokens", "is required", None)
    chat["max_tokens"] = body["max_tokens"]
    chat["messages"] = [*_system(body.get("system")), *_messages(body.get("messages"))]
    if _is_begun(chat["messages"][-1]):
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if flag(body, "stream", default=False):
        options = an_object(body.get("stream_options") or {}, "stream_options")
        chat |= {"stream": True, "stream_options": options | {"include_usage": True}}
    if body.get("tools"):
        chat["tools"] = [_tool(each, place) for each, place in objects(body["tools"], "tools")]
        if body.get("tool_choice") is not None:
            chat |= _choice(an_object(body["tool_choice"], "tool_choice"))
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if (user := an_object(body.get("metadata") or {}, "metadata").get("user_id")) is not None:
        chat["user"] = text(user, "metadata.user_id")
    return chat | _thinking(body) | _output(body)


def _is_begun(last: Json) -> bool:
    """Whether the answer is to go on where a message of the assistant's ends, and not to be another one."""
    return last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last


def _system(value: Any) -> list[Json]:
    if value is None or value == []:
        return []
    return [{"role": "system", "content": _content(value, "system")}]


def _messages(value: Any) -> Iterator[Json]:
    if not value:
        raise wrong("messages", "must have at least one message", value)
    for message, place in objects(value, "messages"):
        role, content, name = message.get("role"), message.get("content"), f"{place}.content"
        if role not in ("user", "assistant", "system"):
            raise wrong(f"{place}.role", "must be user or assistant", role)
        if isinstance(content, str):
            yield {"role": role, "content": content}
        elif role == "assistant":
            yield _said(content, name)
        elif role == "user":
            yield from _asked(content, name)
        else:
            yield {"role": role, "content": _content(content, name)}


def _said(content: Any, name: str) -> Json:
    """An assistant's message."""
    parts, thoughts, calls = [], [], []
    for block, place in objects(content, name):
        match block.get("type"):
            case "text":
                parts.append(_text(block, place))
            case "thinking":
                thoughts.append(text(block.get("thinking"), f"{place}.thinking"))
            case "redacted_thinking":
                pass  # Nobody here could read it.
            case "tool_use":
                call_id, called = text(block.get("id"), f"{place}.id"), text(block.get("name"), f"{place}.name")
                calls.append(tools.call(call_id, called, json.dumps(block.get("input") or {}, ensure_ascii=False)))
            case other:
                raise not_done(f"{place}.type", f"a block of type {other!r}")
    message: Json = {"role": "assistant", "content": tools.joined(parts) if parts else None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    elif message["content"] is None:
        message["content"] = ""
    return message


def _asked(content: Any, name: str) -> Iterator[Json]:
    """A user's message, and what tools gave, which are messages of their own."""
    parts: list[Json] = []
    for block, place in objects(content, name):
        if block.get("type") == "tool_result":
            if parts:
                yield {"role": "user", "content": tools.joined(parts)}
                parts = []
            given = block.get("content")
            said = _content(given, f"{place}.content") if given is not None else ""
            yield {
                "role": "tool",
                "tool_call_id": text(block.get("tool_use_id"), f"{place}.tool_use_id"),
                "content": said,
            }
        else:
            parts.append(_part(block, place))
    if parts or not content:
        yield {"role": "user", "content": tools.joined(parts)}


def _content(value: Any, name: str) -> str | list[Json]:
    if isinstance(value, str):
        return value
    return tools.joined([_part(block, place) for block, place in objects(value, name)])


def _part(block: Json, place: str) -> Json:
    source = block.get("source")
    match block.get("type"):
        case "text":
            return _text(block, place)
        case "image":
            return tools.image(_image(an_object(source, f"{place}.source"), f"{place}.source"))
        case "document" if isinstance(source, dict) and source.get("type") == "text":
            return {"type": "text", "text": text(source.get("data"), f"{place}.source.data")}
    raise not_done(f"{place}.type", f"a block of type {block.get('type')!r}")


def _text(block: Json, place: str) -> Json:
    return {"type": "text", "text": text(block.get("text"), f"{place}.text")}


def _image(source: Json, name: str) -> str:
    match source:
        case {"type": "base64", "media_type": str(kind), "data": str(data)}:
            return f"data:{kind};base64,{data}"
        case {"type": "url", "url": str(url)}:
            return url
    raise wrong(name, "must be of type base64 or url", source.get("type"))


def _tool(tool: Json, place: str) -> Json:
    if tool.get("type") not in (None, "custom"):
        raise not_done(f"{place}.type", f"a tool of type {tool['type']!r}, which the server would have to run,")
    name = text(tool.get("name"), f"{place}.name")
    return tools.function(name, tool.get("description"), tool.get("input_schema"), tool.get("strict"))


def _choice(choice: Json) -> Json:
    kind = choice.get("type")
    if kind == "tool":
        chosen: Any = tools.named(text(choice.get("name"), "tool_choice.name"))
    elif (chosen := _CHOICES.get(str(kind))) is None:
        raise wrong("tool_choice.type", "must be auto, any, tool or none", kind)
    one = flag(choice, "disable_parallel_tool_use", default=False)
    return {"tool_choice": chosen} | ({"parallel_tool_calls": False} if one else {})


def _thinking(body: Mapping[str, Any]) -> Json:
    """As variables that templates of models know which can do both, and the tokens that it may take."""
    if body.get("thinking") is None:
        return {}
    thinking = an_object(body["thinking"], "thinking")
    kind = thinking.get("type")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise wrong("thinking.type", "must be enabled, adaptive or disabled", kind)
    if kind == "adaptive":
        return {}
    given = body.get("chat_template_kwargs")
    variables = given if isinstance(given, dict) else {}
    thinks = dict.fromkeys(("enable_thinking", "thinking"), kind == "enabled")
    told: Json = {"chat_template_kwargs": thinks | variables}
    return told | _budget(thinking, body["max_tokens"]) if kind == "enabled" else told


def _budget(thinking: Json, most: Any) -> Json:
    """`most`: tokens that the answer may have. A budget that is no less than that changes nothing."""
    budget = thinking.get("budget_tokens")
    if budget is None:
        return {}
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise wrong("thinking.budget_tokens", "must be a number of tokens, at least 1", budget)
    return {"thinking_token_budget": budget} if isinstance(most, int) and budget < most else {}


def _output(body: Mapping[str, Any]) -> Json:
    """The form of the answer, and with how much effort it is made."""
    config = an_object(body.get("output_config") or {}, "output_config")
    form = config.get("format") or body.get("output_format")
    told: Json = {}
    if form is not None:
        form = an_object(form, "output_config.format")
        if form.get("type") != "json_schema":
            raise wrong("output_config.format.type", "must be json_schema", form.get("type"))
        named = {"name": "answer", "schema": form.get("schema"), "strict": True}
        told["response_format"] = {"type": "json_schema", "json_schema": named}
    if config.get("effort") is not None:
        told["reasoning_effort"] = config["effort"]
    return told
