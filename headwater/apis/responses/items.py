"""Items of a conversation, as messages of a chat completion.

What an assistant thought, said and called stands in three kinds of items, and is one message there.
"""

from collections.abc import Iterator
from typing import Any

from headwater.apis import tools
from headwater.apis.reading import an_object, not_done, objects, text, wrong

Json = dict[str, Any]


def as_items(value: Any) -> list[Json]:
    """The input, which may be a text alone. Raises BadRequestError."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not value:
        raise wrong("input", "must be a text, or a list of at least one item", value)
    return [item for item, _ in objects(value, "input")]


def messages_of(items: list[Json]) -> list[Json]:
    """Raises BadRequestError."""
    messages: list[Json] = []
    for number, item in enumerate(items):
        for message in _messages(item, f"input[{number}]"):
            if messages and message["role"] == messages[-1]["role"] == "assistant":
                _join(messages[-1], message)
            else:
                messages.append(message)
    for message in messages:
        if message["role"] == "assistant" and "tool_calls" not in message:
            message.setdefault("content", "")
    return messages


def _messages(item: Json, place: str) -> Iterator[Json]:
    match item.get("type", "message"):
        case "message":
            yield _message(item, place)
        case "function_call":
            call_id, name = text(item.get("call_id"), f"{place}.call_id"), text(item.get("name"), f"{place}.name")
            arguments = text(item.get("arguments", ""), f"{place}.arguments")
            yield {"role": "assistant", "tool_calls": [tools.call(call_id, name, arguments)]}
        case "function_call_output":
            call_id = text(item.get("call_id"), f"{place}.call_id")
            given = _content(item.get("output"), f"{place}.output")
            yield {"role": "tool", "tool_call_id": call_id, "content": given}
        case "reasoning":
            if thought := _thought(item, place):
                yield {"role": "assistant", "reasoning_content": thought}
        case other:
            raise not_done(f"{place}.type", f"an item of type {other!r}")


def _message(item: Json, place: str) -> Json:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise wrong(f"{place}.role", "must be user, assistant, system or developer", role)
    content = _content(item.get("content"), f"{place}.content")
    return {"role": role, "content": content}


def _content(value: Any, name: str) -> str | list[Json]:
    if isinstance(value, str):
        return value
    return tools.joined([_part(part, place) for part, place in objects(value, name)])


def _part(part: Json, place: str) -> Json:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": text(part.get("text"), f"{place}.text")}
        case "refusal":
            return {"type": "text", "text": text(part.get("refusal"), f"{place}.refusal")}
        case "input_image" if part.get("image_url") is not None:
            return tools.image(text(part["image_url"], f"{place}.image_url"), part.get("detail"))
    raise not_done(f"{place}.type", f"a part of type {part.get('type')!r}")


def _thought(item: Json, place: str) -> str:
    """The thought itself, or what was said of it. One that is encrypted nobody here can read."""
    for name in ("content", "summary"):
        if item.get(name):
            parts = [an_object(part, where) for part, where in objects(item[name], f"{place}.{name}")]
            return "\n".join(text(part.get("text"), f"{place}.{name}") for part in parts)
    return ""


def _join(message: Json, further: Json) -> None:
    """Go on with an assistant's message."""
    for name, value in further.items():
        if name in ("reasoning_content", "content") and name in message:
            message[name] = tools.followed(message[name], value)
        elif name == "tool_calls":
            message[name] = [*message.get(name, []), *value]
        else:
            message[name] = value
