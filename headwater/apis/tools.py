"""Tools and what of them may be called, as chat completions have it."""

from typing import Any


def function(name: str, description: Any, parameters: Any, strict: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name}
    if description is not None:
        told["description"] = description
    told["parameters"] = parameters if parameters is not None else {"type": "object", "properties": {}}
    if strict is not None:
        told["strict"] = strict
    return {"type": "function", "function": told}


def named(name: str) -> dict[str, Any]:
    """A choice of one function."""
    return {"type": "function", "function": {"name": name}}


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def image(url: str, detail: Any = None) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail is not None else {})}


def joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The content of a message: text alone as a text, which every template takes."""
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts) if len(parts) < 2 else "\n".join(part["text"] for part in parts)
    return parts


def followed(content: str | list[dict[str, Any]], further: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One content behind another."""
    if isinstance(content, str) and isinstance(further, str):
        return f"{content}\n{further}" if content else further
    return [*_parts(content), *_parts(further)]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
