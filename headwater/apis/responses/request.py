"""A request for a response, as one for a chat completion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headwater.apis import tools
from headwater.apis.reading import an_object, flag, none_of, not_done, objects, text, wrong
from headwater.apis.responses.items import as_items, messages_of

_READ: Final = frozenset(
    ("background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls",
     "metadata", "n", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key",
     "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store", "stream", "stream_options",
     "text", "tool_choice", "tools", "top_logprobs", "truncation", "context_management", "moderation",
     "prompt_cache_options")
)  # fmt: skip
"""Members that are no chat completion's, or mean something else there. Others go on as they are."""
_LOGPROBS: Final = "message.output_text.logprobs"
_CHOICES: Final = ("auto", "none", "required")

Json = dict[str, Any]


@dataclass(slots=True)
class Request:
    given: Mapping[str, Any]
    """The body."""
    items: list[Json]
    """The input."""
    previous: str | None
    """The response that it goes on from."""
    store: bool
    streams: bool
    further: Json
    """Of the chat completion, all but the messages."""

    def chat(self, before: list[Json]) -> Json:
        """`before`: the items of the conversation up to here. Raises BadRequestError."""
        told = self.given.get("instructions")
        system = [{"role": "system", "content": text(told, "instructions")}] if told is not None else []
        return {"messages": [*system, *messages_of([*before, *self.items])], **self.further}


def read(body: Mapping[str, Any]) -> Request:
    """Raises BadRequestError."""
    none_of(body, ("background", "conversation", "prompt", "context_management"))
    if body.get("truncation") not in (None, "disabled"):
        raise not_done("truncation", "leaving out what is too much")
    an_object(body.get("metadata") or {}, "metadata")
    previous = body.get("previous_response_id")
    return Request(
        body,
        as_items(body.get("input")),
        text(previous, "previous_response_id") if previous is not None else None,
        flag(body, "store", default=True),
        flag(body, "stream", default=False),
        _further(body),
    )


def _further(body: Mapping[str, Any]) -> Json:
    chat: Json = {name: value for name, value in body.items() if name not in _READ and value is not None}
    if flag(body, "stream", default=False):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if body.get("tools"):
        chat["tools"] = [_tool(each, place) for each, place in objects(body["tools"], "tools")]
        if body.get("tool_choice") is not None:
            chat |= _choice(body["tool_choice"], chat["tools"])
        if not flag(body, "parallel_tool_calls", default=True):
            chat["parallel_tool_calls"] = False
    reasoning = an_object(body.get("reasoning") or {}, "reasoning")
    if reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    return chat | _text(body) | _logprobs(body)


def _tool(tool: Json, place: str) -> Json:
    if tool.get("type") != "function":
        raise not_done(f"{place}.type", f"a tool of type {tool.get('type')!r}, which the server would have to run,")
    name = text(tool.get("name"), f"{place}.name")
    return tools.function(name, tool.get("description"), tool.get("parameters"), tool.get("strict"))


def _choice(choice: Any, known: list[Json]) -> Json:
    match choice:
        case str() if choice in _CHOICES:
            return {"tool_choice": choice}
        case {"type": "function", "name": str(name)}:
            return {"tool_choice": tools.named(name)}
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [_, *_] as allowed}:
            names = [each.get("name") for each in allowed if isinstance(each, dict)]
            return {"tool_choice": mode, "tools": [each for each in known if each["function"]["name"] in names]}
    raise wrong("tool_choice", "must be auto, none, required, or an object that names functions", choice)


def _text(body: Mapping[str, Any]) -> Json:
    """The form of the answer, and how wordy it is."""
    config = an_object(body.get("text") or {}, "text")
    told: Json = {}
    form = an_object(config.get("format") or {"type": "text"}, "text.format")
    match form.get("type"):
        case "text":
            pass
        case "json_schema":
            named = {
                name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None
            }
            told["response_format"] = {"type": "json_schema", "json_schema": named}
        case "json_object":
            told["response_format"] = {"type": "json_object"}
        case other:
            raise wrong("text.format.type", "must be text, json_schema or json_object", other)
    if config.get("verbosity") not in (None, "medium"):
        told["verbosity"] = config["verbosity"]
    return told


def _logprobs(body: Mapping[str, Any]) -> Json:
    include = body.get("include") or []
    if not isinstance(include, list):
        raise wrong("include", "must be a list", include)
    if _LOGPROBS not in include and not body.get("top_logprobs"):
        return {}
    return {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
