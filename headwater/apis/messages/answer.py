"""A message, whole or as events, from the blocks of a chat completion."""

import uuid
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from headwater.apis.base import ApiEvent, BrokenAnswerError, EventStream
from headwater.apis.blocks import Answer, Block, Change, Kind, Usage, What

_STOPS: Final = {"length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}
_ERRORS: Final = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip
_UNTOLD: Final = {"cache_creation": None, "inference_geo": None, "service_tier": "standard"}
"""Of a usage, what its schema wants to be there and no engine says."""
_decode: Final = msgspec.json.Decoder().decode

Json = dict[str, Any]


def message_of(answer: Answer, model: str) -> Json:
    """`model`: that was asked for; "": nobody said. Raises BrokenAnswerError."""
    message = _head(model or answer.model or "", answer.usage or Usage())
    message["content"] = [_content(block, cut=answer.finish == "length") for block in answer.blocks]
    return message | _end(answer)


def error_of(status: int, error: Json, request_id: str | None) -> Json:
    kind = _ERRORS.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")
    told = {"type": kind, "message": str(error.get("message") or "")}
    return {"type": "error", "error": told, "request_id": request_id}


class MessageStream(EventStream):
    def __init__(self, model: str, request_id: str | None) -> None:
        super().__init__()
        self._request_id = request_id
        self._answer = Answer()
        self._model = model
        self._began = False

    def feed(self, chunk: Json) -> list[ApiEvent]:
        changes = list(self._answer.feed(chunk))
        events = self._begin()
        for change in changes:
            events += _events(change)
        return events

    def end(self) -> list[ApiEvent]:
        self.over = True
        events = self._begin()
        for change in self._answer.end():
            events += _events(change)
        told = {"type": "message_delta", "delta": _end(self._answer), "usage": _usage(self._answer.usage or Usage())}
        return [*events, ApiEvent("message_delta", told), ApiEvent("message_stop", {"type": "message_stop"})]

    def fail(self, error: Json) -> list[ApiEvent]:
        self.over = True
        return [ApiEvent("error", error_of(_status(error), error, self._request_id))]

    def _begin(self) -> list[ApiEvent]:
        if self._began:
            return []
        self._began = True
        # What the prompt has is in the first chunk of servers that tell it all along, else at the end only; there all
        # of the usage is told.
        message = _head(self._model or self._answer.model or "", self._answer.usage or Usage()) | {"content": []}
        return [ApiEvent("message_start", {"type": "message_start", "message": message})]


def _status(error: Json) -> int:
    code = error.get("code")
    return (
        code
        if isinstance(code, int)
        else {"rate_limit_error": 429, "invalid_request_error": 400}.get(str(error.get("type")), 500)
    )


def _head(model: str, usage: Usage) -> Json:
    return {
        "id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "stop_details": None, "container": None,
        "usage": _usage(usage) | _UNTOLD,
    }  # fmt: skip


def _usage(usage: Usage) -> Json:
    """What was cached is counted apart from the rest of the prompt."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "server_tool_use": None,
    }


def _end(answer: Answer) -> Json:
    reason = _STOPS.get(answer.finish or "stop", "end_turn")
    if reason == "end_turn":
        reason = "tool_use" if answer.calls else "stop_sequence" if answer.stop is not None else reason
    sequence = answer.stop if reason == "stop_sequence" else None
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None, "container": None}


def _content(block: Block, *, cut: bool) -> Json:
    match block.kind:
        case Kind.CALL:
            return _call(block, _arguments(block.text, cut))
        case Kind.REASONING:
            return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text, "citations": None}


def _call(block: Block, arguments: Json) -> Json:
    told = {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}
    return {**told, "caller": {"type": "direct"}}


def _arguments(written: str, cut: bool) -> Json:
    """Of a call that was `cut` off there may be no object to tell; that it was, the `stop_reason` says."""
    try:
        value = _decode(written or "{}")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        if cut:
            return {}
        raise BrokenAnswerError("The model called a tool with arguments that are no JSON object.")
    return value


def _events(change: Change) -> Iterable[ApiEvent]:
    block, index = change.block, change.block.index
    match change.what:
        case What.OPENED:
            yield _event("content_block_start", index, content_block=_opened(block))
        case What.GREW:
            yield _event("content_block_delta", index, delta=_delta(block.kind, change.piece))
        case What.CLOSED:
            if block.kind is Kind.REASONING:
                yield _event("content_block_delta", index, delta={"type": "signature_delta", "signature": ""})
            yield _event("content_block_stop", index)


def _opened(block: Block) -> Json:
    match block.kind:
        case Kind.CALL:
            return _call(block, {})
        case Kind.REASONING:
            return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": "", "citations": None}


def _delta(kind: Kind, piece: str) -> Json:
    match kind:
        case Kind.CALL:
            return {"type": "input_json_delta", "partial_json": piece}
        case Kind.REASONING:
            return {"type": "thinking_delta", "thinking": piece}
    return {"type": "text_delta", "text": piece}


def _event(name: str, index: int, **told: Any) -> ApiEvent:
    return ApiEvent(name, {"type": name, "index": index, **told})
