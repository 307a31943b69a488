"""Text Generation Inference 3.3.7, as recorded from it.

It takes no null, no `stop` that is no list, no `top_p` of 1, no other form of `response_format` than its own, and
ignores what it does not know, with status 200. A `presence_penalty` it takes, in chats, for a repetition penalty of 2
more, so 0 is a strong one. What it answers has its own word for a stop string, which it leaves in
the text, no id, and nothing that says that it ended with a call.
"""

import json
from typing import Any, Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.base import Dialect, Translation, UnsupportedRequestError
from headwater.backends.dialects.fields import refuse_ignored, take_special_tokens
from headwater.backends.dialects.forms import as_regex, put, take_form, unsupported
from headwater.backends.dialects.stops import StopStrings, stops_in
from headwater.openai.constraint import Constraint, Kind

_MOST_STOPS: Final = 4
_CHAT, _COMPLETIONS, _TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
_OWN: Final = frozenset(("response_format",))
_NONE: Final[frozenset[Any]] = frozenset()
_IGNORED: Final = frozenset(
    ("allowed_token_ids", "bad_words", "ignore_eos", "include_stop_str_in_output", "kv_transfer_params",
     "logits_processors", "logprob_token_ids", "min_p", "min_tokens", "presence_penalty", "prompt_logprobs",
     "repetition_detection", "return_token_ids", "return_token_offsets", "return_tokens_as_token_ids",
     "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids", "thinking_token_budget", "top_k",
     "truncate_prompt_tokens", "use_beam_search", "vllm_xargs", "watermarking")
)  # fmt: skip
_IGNORED_IN_CHATS: Final = _IGNORED | frozenset(
    ("add_generation_prompt", "audio", "chat_template", "chat_template_kwargs", "continue_final_message", "documents",
     "echo", "enable_thinking", "function_call", "functions", "include_reasoning", "modalities", "reasoning_effort",
     "repetition_penalty", "return_prompt_text", "verbosity", "web_search_options")
)  # fmt: skip
_REASONS: Final = {"stop_sequence": "stop", "eos_token": "stop"}
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


class TGIDialect(Dialect):
    server = "TGI"
    paths = frozenset((_CHAT, _COMPLETIONS, _TOKENIZE))
    kinds = frozenset((Kind.JSON_SCHEMA, Kind.REGEX, Kind.CHOICE))

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = {name: raw for name, raw in members.items() if bytes(raw).strip() != b"null"}
        if path == _TOKENIZE:
            return _to_tokenize(given)
        take_special_tokens(path, given)
        refuse_ignored(given, _IGNORED_IN_CHATS if path == _CHAT else _IGNORED)
        given.pop("presence_penalty", None)
        _write_calls(given)
        for name in ("n", "best_of"):
            _only(given, name, 1, "cannot be more than 1 with the server of this model")
        if path == _COMPLETIONS:
            _check_completion(given)
        # Completions have no form at all.
        own, kinds = (_OWN, self.kinds) if path == _CHAT else (_NONE, _NONE)
        if (asked := take_form(given, own, kinds)) is not None:
            put(given, _written(*asked))
        if "max_completion_tokens" in given:
            given.pop("max_tokens", None)
        if "top_p" in given and _value(given, "top_p") == 1:
            del given["top_p"]
        if "logit_bias" in given and _value(given, "logit_bias") == {}:
            del given["logit_bias"]
        elif "logit_bias" in given:
            raise UnsupportedRequestError("logit_bias", "is not known to the server of this model")
        _write_stop(given)
        _write_format(given)
        return given

    def translation(self, path: str, members: dict[str, Raw], model: str, request_id: str) -> Translation:
        return _TGITranslation(model, request_id, StopStrings(stops_in(members)))


def _value(members: dict[str, Raw], name: str) -> Any:
    return _decode(members[name])


def _only(members: dict[str, Raw], name: str, value: Any, message: str) -> None:
    """Take a member out that asks for no more than what is done without it."""
    if name in members and _decode(members.pop(name)) != value:
        raise UnsupportedRequestError(name, message)


def _to_tokenize(members: dict[str, Raw]) -> dict[str, Raw]:
    if "messages" in members:
        raise UnsupportedRequestError("messages", "cannot be tokenized by the server of this model; give a `prompt`")
    if "prompt" in members:
        members["inputs"] = members.pop("prompt")
    return members


def _check_completion(members: dict[str, Raw]) -> None:
    _only(members, "echo", False, "is not known to the server of this model")
    _only(members, "suffix", "", "is not known to the server of this model")
    if "logprobs" in members:
        raise UnsupportedRequestError("logprobs", "is not known here to the server of this model; it is in chats")
    prompt = bytes(members.get("prompt", b"")).lstrip()
    if prompt.startswith(b"[") and not prompt[1:].lstrip().startswith((b'"', b"]")):
        raise UnsupportedRequestError("prompt", "must be text: the server of this model takes no token ids")


def _write_calls(members: dict[str, Raw]) -> None:
    """Calls in messages: TGI does not read those of a message with content, and of others it writes the arguments as a
    text within a text. So they are put behind the content, as they came."""
    if b'"tool_calls"' not in bytes(members.get("messages", b"")):
        return
    messages = _value(members, "messages")
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict) or not isinstance(calls := message.pop("tool_calls", None), list) or not calls:
            continue
        content, told = message.get("content"), _encode(calls).decode()
        if isinstance(content, list):
            message["content"] = [*content, {"type": "text", "text": told}]
        else:
            message["content"] = f"{content}\n{told}" if content else told
    put(members, {"messages": messages})


def _write_stop(members: dict[str, Raw]) -> None:
    if "stop" not in members:
        return
    stop = stops_in(members)
    if isinstance(stop, list) and len(stop) > _MOST_STOPS:
        raise UnsupportedRequestError("stop", f"can be {_MOST_STOPS} with the server of this model, not {len(stop)}")
    if bytes(members["stop"]).lstrip().startswith(b'"'):
        put(members, {"stop": stop})


def _write_format(members: dict[str, Raw]) -> None:
    match _value(members, "response_format") if "response_format" in members else None:
        case {"type": "text"}:
            del members["response_format"]
        case {"value": _}:
            pass  # in its own form
        case {"type": "json_schema", "json_schema": {"schema": schema, **further}}:
            put(members, _as_schema("response_format", schema, further.get("name")))
        case {"type": "json_object"}:
            raise _no_properties("response_format")
        case {"type": "structural_tag"}:
            raise unsupported("response_format", Kind.STRUCTURAL_TAG)


def _written(name: str, form: Constraint) -> dict[str, Any]:
    if form.kind is Kind.JSON_SCHEMA:
        return _as_schema(name, json.loads(form.text), None)
    return {"response_format": {"type": "regex", "value": as_regex(form)}}


def _as_schema(name: str, schema: Any, called: Any) -> dict[str, Any]:
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        raise _no_properties(name)
    value = {"name": called if isinstance(called, str) else "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "value": value}}


def _no_properties(name: str) -> UnsupportedRequestError:
    hint = "must be a schema of an object with `properties`: the server of this model makes no other JSON"
    return UnsupportedRequestError(name, hint)


class _TGITranslation(Translation):
    def __init__(self, model: str, request_id: str, stops: StopStrings) -> None:
        self._model = model
        self._id = request_id
        self._stops = stops
        self._called: set[int] = set()
        """Choices that call a tool, and have not ended."""
        self._told: set[tuple[int, int]] = set()
        """Calls, by choice and number, whose id and name were told."""
        self._last: dict[str, Any] = {}

    def document(self, said: Any) -> Any:
        if isinstance(said, list):  # of /tokenize
            tokens = [each.get("id") for each in said if isinstance(each, dict)]
            return {"count": len(tokens), "tokens": tokens}
        if not isinstance(said, dict) or not isinstance(said.get("choices"), list):
            return said
        self._head(said)
        for choice in filter(_is_choice, said["choices"]):
            text, message = choice.get("text"), choice.get("message")
            calls = isinstance(message, dict) and bool(message.get("tool_calls"))
            if choice.get("finish_reason") == "stop_sequence":
                if isinstance(text, str):
                    choice["text"] = self._stops.before(choice["index"], text)
                if isinstance(message, dict) and isinstance(message.get("content"), str):
                    message["content"] = self._stops.before(choice["index"], message["content"])
            choice["finish_reason"] = _reason(choice.get("finish_reason"), calls=calls)
        return said

    def event(self, said: dict[str, Any]) -> list[dict[str, Any]]:
        if not isinstance(said.get("choices"), list):
            return [said]
        self._head(said)
        self._last = {name: value for name, value in said.items() if name not in ("choices", "usage")}
        said["choices"] = [each for each in said["choices"] if not _is_choice(each) or self._says(each)]
        return [said] if said["choices"] or said.get("usage") else []

    def end(self) -> list[dict[str, Any]]:
        if not self._called:
            return []
        end: dict[str, Any] = {"delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
        return [{**self._last, "choices": [{"index": index, **end} for index in sorted(self._called)]}]

    def _head(self, said: dict[str, Any]) -> None:
        said["model"] = self._model
        said["id"] = said.get("id") or self._id

    def _says(self, choice: dict[str, Any]) -> bool:
        """Translate a choice of an event. Returns whether there is anything of it left."""
        # Of texts it says "" for as long as they go on, and not null.
        index, delta, reason = choice["index"], choice.get("delta"), choice.get("finish_reason") or None
        choice["finish_reason"] = reason
        part, field = (delta, "content") if isinstance(delta, dict) else (choice, "text")
        if calls := bool(part.get("tool_calls")):
            self._called.add(index)
            _tell_once(self._told, index, part["tool_calls"])
        if isinstance(part.get(field), str) and self._stops:
            part[field] = self._stops.piece(index, part[field])
        if reason is not None:
            if held := self._stops.rest(index):  # None, where a stop string was found.
                part[field] = (part.get(field) or "") + held
            choice["finish_reason"] = _reason(reason, calls=index in self._called)
            self._called.discard(index)
        return reason is not None or calls or bool(part.get(field))


def _tell_once(told: set[tuple[int, int]], choice: int, calls: Any) -> None:
    """TGI says a call's id with each piece of its arguments; clients would put these together to one."""
    for call in calls if isinstance(calls, list) else []:
        if not isinstance(call, dict) or not isinstance(number := call.get("index"), int):
            continue
        if (choice, number) in told:
            call.pop("id", None)
            call.pop("type", None)
            if isinstance(function := call.get("function"), dict) and function.get("name") is None:
                function.pop("name", None)
        told.add((choice, number))


def _is_choice(each: Any) -> bool:
    return isinstance(each, dict) and isinstance(each.get("index"), int)


def _reason(reason: Any, *, calls: bool) -> Any:
    reason = _REASONS.get(reason, reason) if isinstance(reason, str) else reason
    return "tool_calls" if calls and reason == "stop" else reason
