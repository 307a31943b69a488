"""Chat completions as servers answer them, whole and cut into chunks."""

import json
from typing import Any

TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
USAGE = {
    "prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip
_EACH = {"id": "chatcmpl-1", "created": 1_790_000_000, "model": "x"}


def chat(
    content: str | None = None, *calls: tuple[str, str, str], reasoning: str | None = None, finish: str = "stop",
    **choice: Any,
) -> dict[str, Any]:  # fmt: skip
    """`calls`: ids, names and arguments."""
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": one, "type": "function", "function": {"name": name, "arguments": arguments}}
            for one, name, arguments in calls
        ]
    told = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None, **choice}
    return {"object": "chat.completion", **_EACH, "choices": [told], "usage": USAGE}


def chunks(document: dict[str, Any], size: int = 3) -> list[dict[str, Any]]:
    """The same, in pieces of so many characters."""
    (choice,) = document["choices"]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for name in ("reasoning_content", "content"):
        deltas += [{name: piece} for piece in _cut(message.get(name) or "", size)]
    for number, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        begun = {"name": function["name"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": number, "id": call["id"], "type": "function", "function": begun}]})
        for piece in _cut(function["arguments"], size):
            deltas.append({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
    said = [_chunk([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"], "stop_reason": choice.get("stop_reason")}
    return [*said, _chunk([last]), _chunk([]) | {"usage": document["usage"]}]


def stream(document: dict[str, Any], size: int = 3) -> bytes:
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks(document, size)]
    return b"".join(events) + b"data: [DONE]\n\n"


def _chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", **_EACH, "choices": choices}


def _cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]
