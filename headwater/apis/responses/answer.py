"""A response, and its items, from the blocks of a chat completion."""

import time
import uuid
from typing import Any, Final

from headwater.apis.blocks import Answer, Block, Kind, Usage
from headwater.apis.responses.request import Request

Json = dict[str, Any]

_ECHOED: Final[Json] = {
    "background": False, "frequency_penalty": 0.0, "instructions": None, "max_output_tokens": None,
    "max_tool_calls": None, "metadata": {}, "parallel_tool_calls": True, "presence_penalty": 0.0,
    "previous_response_id": None, "prompt_cache_key": None, "reasoning": None, "safety_identifier": None,
    "service_tier": "default", "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0,
    "truncation": "disabled", "user": None,
}  # fmt: skip
"""What a response says of its request, and what where that said nothing: a server's own defaults nobody knows here."""
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_PREFIXES: Final = {Kind.REASONING: "rs", Kind.TEXT: "msg", Kind.REFUSAL: "msg", Kind.CALL: "fc"}


def response_of(response_id: str, request: Request) -> Json:
    """As it begins."""
    given = request.given
    echoed = {name: usual if given.get(name) is None else given[name] for name, usual in _ECHOED.items()}
    config = given.get("text") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": given.get("model"),
        "output": [],
        "usage": None,
        "store": request.store,
        "text": {"format": config.get("format") or {"type": "text"}, "verbosity": config.get("verbosity") or "medium"},
        **echoed,
        "tools": [_tool(each) for each in echoed["tools"] or []],
        "reasoning": {"effort": None, "summary": None} | (echoed["reasoning"] or {}),
    }


def finished(response: Json, answer: Answer) -> Json:
    """As it ends."""
    return ended(response, answer, [item_of(block, new_id(block), answer) for block in answer.blocks])


def ended(response: Json, answer: Answer, items: list[Json]) -> Json:
    cut = _INCOMPLETE.get(answer.finish or "")
    return response | {
        "model": response["model"] or answer.model,
        "status": "incomplete" if cut else "completed",
        "completed_at": None if cut else int(time.time()),
        "incomplete_details": {"reason": cut} if cut else None,
        "output": items,
        "usage": _usage(answer.usage or Usage()),
    }


def failed(response: Json, error: Json, items: list[Json]) -> Json:
    code = "rate_limit_exceeded" if error.get("type") == "rate_limit_error" else "server_error"
    told = {"code": code, "message": str(error.get("message") or "")}
    return response | {"status": "failed", "error": told, "output": items}


def new_id(block: Block) -> str:
    return f"{_PREFIXES[block.kind]}_{uuid.uuid4().hex}"


def item_of(block: Block, item_id: str, answer: Answer, *, broken: bool = False) -> Json:
    """Of a block that is over. `broken`: as the whole answer is."""
    last = block is answer.blocks[-1]
    status = "incomplete" if last and (broken or answer.finish in _INCOMPLETE) else "completed"
    return item(block, item_id, status, [part_of(block)])


def item(block: Block, item_id: str, status: str, parts: list[Json]) -> Json:
    match block.kind:
        case Kind.CALL:
            arguments = block.text if parts else ""
            return {
                "id": item_id, "type": "function_call", "status": status, "call_id": block.call_id,
                "name": block.name, "arguments": arguments,
            }  # fmt: skip
        case Kind.REASONING:
            told = {"id": item_id, "type": "reasoning", "summary": [], "content": parts, "encrypted_content": None}
            return {**told, "status": status}
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": parts}


def part_of(block: Block) -> Json:
    match block.kind:
        case Kind.REASONING:
            return {"type": "reasoning_text", "text": block.text}
        case Kind.REFUSAL:
            return {"type": "refusal", "refusal": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": block.logprobs}


def _tool(tool: Json) -> Json:
    return {"description": None, "parameters": None, "strict": None} | tool


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.output,
    }
