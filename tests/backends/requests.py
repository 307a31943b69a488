"""The 81 requests of the contract, and what an answer to each has to show: that what was asked for was done.

A server may refuse what it cannot do. One that ignores it, with status 200, is found out here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.backends.answers import Answer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
MODEL = "m"
CONTEXT = 2048
"""Tokens that each server is started for; one is a byte."""
HELLO = [{"role": "user", "content": "Hello there"}]
SAID = "The quick brown fox"
LONG = "water " * (CONTEXT // 5)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Basel"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
_FORM = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
_TOOL = {"type": "function", "function": {"name": "find", "description": "Find a place", "parameters": SCHEMA}}
_NAMED = {"type": "function", "function": {"name": "find"}}
_TOOLS = {"messages": HELLO, "tools": [_TOOL], "max_tokens": 96}
_USAGE = {"include_usage": True}

Answers = Mapping[str, Answer]
"""To the requests before, by name."""
Check = Callable[[Answer, Answers], str]
"""What of the request was not done; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    kind: str
    name: str
    path: str
    fields: Mapping[str, Any]
    check: Check
    """Of an answer with status 200."""
    stop_of: str = ""
    """Name of an earlier request, of whose answer a part is to be the stop string."""
    raw: bytes = b""
    """Instead of all that."""

    def body(self, before: Answers) -> bytes:
        if self.raw:
            return self.raw
        fields = {"model": MODEL, "temperature": 0, "max_tokens": 8} | dict(self.fields)
        if self.stop_of:
            stop = stop_in(before[self.stop_of].texts[0])
            fields["stop"] = [stop, "never said"] if fields.get("stop") == [] else stop
        return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()

    @property
    def streamed(self) -> bool:
        return bool(self.fields.get("stream"))


# What an answer has to show


def said(count: int = 1, begin: str = "") -> Check:
    """So many choices, each with text."""

    def check(answer: Answer, before: Answers) -> str:
        texts = answer.texts
        if len(texts) != count:
            return f"{len(texts)} of {count} choices"
        return "" if all(text and text.startswith(begin) for text in texts) else f"{texts[0][:20]!r}"

    return check


def with_usage(answer: Answer, before: Answers) -> str:
    return said()(answer, before) or ("" if answer.usage else "no usage")


def stop_in(text: str) -> str:
    """Two characters that are not there before, and not at the beginning."""
    return next((text[place : place + 2] for place in range(1, len(text) - 1) if _is_new(text, place)), text[:2])


def _is_new(text: str, place: int) -> bool:
    return text.find(text[place : place + 2]) == place


def stopped(of: str, *, behind: bool = False) -> Check:
    """Where the stop string is in what would have been said."""

    def check(answer: Answer, before: Answers) -> str:
        whole = before[of].texts[0]
        stop = stop_in(whole)
        if answer.texts[0] != whole[: whole.find(stop) + (len(stop) if behind else 0)]:
            return f"{answer.texts[0]!r} of {whole!r}"
        return "" if answer.choices[0].reason == "stop" else f"ended with {answer.choices[0].reason}"

    return check


def like(name: str) -> Check:
    def check(answer: Answer, before: Answers) -> str:
        return "" if answer.texts == before[name].texts else "another text"

    return check


def longer(than: str) -> Check:
    """The prompt: what was said before is in it."""

    def check(answer: Answer, before: Answers) -> str:
        mine, other = ((each.usage or {}).get("prompt_tokens", 0) for each in (answer, before[than]))
        return said()(answer, before) or ("" if mine > other else f"a prompt of {mine} tokens, after {other}")

    return check


def says(text: str, reason: str = "length") -> Check:
    def check(answer: Answer, before: Answers) -> str:
        [choice] = answer.choices.values()
        done = choice.text == text and choice.reason == reason
        return "" if done else f"{choice.text[:20]!r}, ended with {choice.reason}"

    return check


def thinks(answer: Answer, before: Answers) -> str:
    """And does not come to an end with it."""
    [choice] = answer.choices.values()
    return "" if choice.thought and not choice.text else f"thought {choice.thought[:20]!r}, said {choice.text[:20]!r}"


def thinks_like(name: str, count: int | None = None) -> Check:
    """`count`: at most so many tokens of it, and then something is said."""

    def check(answer: Answer, before: Answers) -> str:
        [choice], whole = answer.choices.values(), before[name].choices[0].thought
        done = choice.thought == whole[:count] and bool(choice.thought) and bool(choice.text) is bool(count)
        return "" if done else f"thought {choice.thought[:20]!r}, said {choice.text[:20]!r}"

    return check


def logprobs(count: int) -> Check:
    """For so many tokens, at least."""

    def check(answer: Answer, before: Answers) -> str:
        found = answer.choices[0].logprobs
        return "" if found >= count else f"log-probabilities of {found} of {count} tokens"

    return check


def in_form(answer: Answer, before: Answers) -> str:
    [text] = answer.texts
    if answer.choices[0].reason == "length":
        return "" if text.lstrip().startswith("{") else f"{text[:20]!r}"
    return _misfit(text)


def any_json(answer: Answer, before: Answers) -> str:
    [text] = answer.texts
    return "" if text.lstrip().startswith(("{", "[")) else f"{text[:20]!r}"


def called(*, by_name: bool = False) -> Check:
    """Ended so, or with "stop" where the call was named, as OpenAI's own."""
    reasons = {"tool_calls", "length"} | ({"stop"} if by_name else set())

    def check(answer: Answer, before: Answers) -> str:
        choice = answer.choices[0]
        if list(choice.calls) != [0] or choice.calls[0]["name"] != "find" or not choice.calls[0]["id"]:
            return f"no call, but {choice.text[:20]!r}" if not choice.calls else f"{choice.calls[0]}"
        if choice.reason not in reasons:
            return f"a call that ends with {choice.reason}"
        return "" if choice.reason == "length" else _misfit(choice.calls[0]["arguments"])

    return check


def _misfit(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return f"no JSON: {text[:20]!r}"
    fits = isinstance(found, dict) and found.keys() == {"city", "big"} and found["city"] in ("Bern", "Basel")
    return "" if fits else f"not of the schema: {text[:20]!r}"


def refused(answer: Answer, before: Answers) -> str:
    return "answered"


# The requests


def _chat(kind: str, name: str, check: Check, stop_of: str = "", **fields: Any) -> Asked:
    return Asked(kind, name, CHAT, {"messages": HELLO} | fields, check, stop_of)


def _text(kind: str, name: str, check: Check, stop_of: str = "", **fields: Any) -> Asked:
    return Asked(kind, name, TEXT, {"prompt": SAID} | fields, check, stop_of)


def _called_before(content: Any, city: str) -> list[dict[str, Any]]:
    function = {"name": "find", "arguments": json.dumps({"city": city, "big": True})}
    call = {"id": "call_0001", "type": "function", "function": function}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    return [*HELLO, message, {"role": "tool", "tool_call_id": "call_0001", "content": "There."}]


_A, _BIAS = 32, {"32": 100}
"""The token of this letter."""
_THINKING = {"enable_thinking": True}
_THINK = {"messages": HELLO, "max_tokens": 16, "thinking": {"type": "enabled", "budget_tokens": 4}}
_INPUT = {"input": "Hello there", "max_tokens": ..., "max_output_tokens": 8}
_THOUGHT = [*HELLO, {"role": "assistant", "content": "Hi", "reasoning_content": "They greet me."}, *HELLO]
_SYSTEM = {"role": "system", "content": "Be brief."}
_PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}]
_WITH_STREAM: dict[str, Any] = {"stream": True, "stream_options": _USAGE}

REQUESTS: tuple[Asked, ...] = (
    _chat("chats", "chat", said()),
    _text("chats", "text", said()),
    _chat("chats", "a system message", said(), messages=[_SYSTEM, *HELLO]),
    _chat("chats", "three turns", said(), messages=[*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO]),
    _chat("chats", "content in parts", like("chat"), messages=_PARTS),
    _chat("chats", "one token", said(), max_tokens=1),
    _chat("chats", "max_completion_tokens", like("chat"), max_tokens=..., max_completion_tokens=8),
    _chat("chats", "both limits", like("chat"), max_completion_tokens=8),
    _chat("chats", "n of 2", said(2), n=2, temperature=1),
    _chat("chats", "nulls and top_p of 1", like("chat"), top_p=1, stop=None, stream=None, n=1),
    _chat("chats", "penalties", said(), presence_penalty=1.5, frequency_penalty=0.5),
    _chat("chats", "penalties of 0", like("chat"), presence_penalty=0, frequency_penalty=0),
    _chat("chats", "an unknown field", said(), no_such_field=1),
    _text("chats", "token ids", said(), prompt=[72, 105, 40]),
    _text("chats", "two prompts", said(2), prompt=[SAID, "And"]),
    _text("chats", "n of 2 texts", said(2), n=2, temperature=1),
    _text("chats", "echo", said(begin=SAID), echo=True),
    _chat("streams", "streamed chat", like("chat"), stream=True),
    _chat("streams", "with usage", with_usage, **_WITH_STREAM),
    _chat(
        "streams", "usage all along", with_usage, stream=True, stream_options=_USAGE | {"continuous_usage_stats": True}
    ),
    _chat("streams", "n of 2, streamed", said(2), stream=True, n=2, temperature=1),
    _chat("streams", "one token, streamed", said(), stream=True, max_tokens=1),
    _chat("streams", "stream_options null", like("chat"), stream=True, stream_options=None),
    _text("streams", "streamed text", like("text"), stream=True),
    _text("streams", "text with usage", with_usage, **_WITH_STREAM),
    _text("streams", "two prompts, streamed", said(2), stream=True, prompt=[SAID, "And"]),
    _chat("stops", "a stop string", stopped("chat"), stop_of="chat"),
    _chat("stops", "two stop strings", stopped("chat"), stop_of="chat", stop=[]),
    _chat("stops", "stop, streamed", stopped("chat"), stop_of="chat", stream=True),
    _text("stops", "stop of a text", stopped("text"), stop_of="text"),
    _text("stops", "stop of a text, streamed", stopped("text"), stop_of="text", stream=True),
    _chat("stops", "five stop strings", like("chat"), stop=["12345", "23456", "34567", "45678", "56789"]),
    _chat("stops", "no stop strings", like("chat"), stop=[]),
    _chat(
        "stops",
        "include_stop_str_in_output",
        stopped("chat", behind=True),
        stop_of="chat",
        include_stop_str_in_output=True,
    ),
    _chat("seeds", "a seed", said(), seed=7, temperature=1),
    _chat("seeds", "the seed again", like("a seed"), seed=7, temperature=1),
    _text("seeds", "a seed of a text", said(), seed=11, temperature=1),
    _text("seeds", "the seed of a text again", like("a seed of a text"), seed=11, temperature=1),
    _chat("sampling", "top_k of 1", like("chat"), top_k=1, temperature=1),
    _chat("sampling", "min_p of 1", like("chat"), min_p=1, temperature=1),
    _chat("sampling", "a bias", says("A" * 8), logit_bias=_BIAS),
    _chat("sampling", "allowed tokens", says("A" * 8), allowed_token_ids=[_A]),
    _chat("sampling", "a stop token", says("", "stop"), stop_token_ids=[_A], logit_bias=_BIAS),
    _chat("log-probabilities", "of a chat", logprobs(8), logprobs=True, top_logprobs=2),
    _chat("log-probabilities", "of a streamed chat", logprobs(8), logprobs=True, top_logprobs=2, stream=True),
    _text("log-probabilities", "of a text", logprobs(8), logprobs=2),
    _text("log-probabilities", "of a streamed text", logprobs(8), logprobs=2, stream=True),
    _text("log-probabilities", "of an echo", logprobs(8 + len(SAID)), logprobs=1, echo=True),
    _chat("errors", "no message", refused, messages=[]),
    _chat("errors", "without messages", refused, messages=...),
    Asked("errors", "broken JSON", CHAT, {}, refused, raw=b'{"model": "m", "messages": [{'),
    _chat("errors", "a temperature in words", refused, temperature="hot"),
    _chat("errors", "a temperature below 0", refused, temperature=-1),
    _chat("errors", "a prompt too long", refused, messages=[{"role": "user", "content": LONG}]),
    _chat("errors", "a prompt too long, streamed", refused, messages=[{"role": "user", "content": LONG}], stream=True),
    _chat("errors", "a negative limit", refused, max_tokens=-1),
    _chat("errors", "an unknown model", refused, model="nobody"),
    _chat("constraints", "a schema", in_form, response_format=_FORM, max_tokens=96),
    _chat("constraints", "a schema, streamed", in_form, response_format=_FORM, max_tokens=96, stream=True),
    _chat("constraints", "any JSON", any_json, response_format={"type": "json_object"}, max_tokens=16),
    _chat("constraints", "plain text", like("chat"), response_format={"type": "text"}),
    Asked("tools", "a call that is required", CHAT, _TOOLS | {"tool_choice": "required"}, called()),
    Asked("tools", "a call by name", CHAT, _TOOLS | {"tool_choice": _NAMED}, called(by_name=True)),
    Asked("tools", "a required call, streamed", CHAT, _TOOLS | {"tool_choice": "required", "stream": True}, called()),
    Asked("tools", "tools that are not to be called", CHAT, _TOOLS | {"tool_choice": "none", "max_tokens": 8}, said()),
    _chat("tools", "a call and its result", said(), messages=_called_before(None, "Bern")),
    _chat("tools", "a call beside no text", like("a call and its result"), messages=_called_before("", "Bern")),
    _chat("tools", "a call beside a text", longer("a call and its result"), messages=_called_before("I look", "Bern")),
    _chat("tools", "another one", longer("a call beside a text"), messages=_called_before("I look", "Basel")),
    _chat("thoughts", "a thought", thinks, **_THINKING),
    _chat("thoughts", "a thought, streamed", thinks_like("a thought"), stream=True, **_THINKING),
    _chat("thoughts", "a budget", thinks_like("a thought", 4), thinking_token_budget=4, max_tokens=16, **_THINKING),
    _chat(
        "thoughts",
        "a budget, streamed",
        thinks_like("a thought", 4),
        stream=True,
        thinking_token_budget=4,
        max_tokens=16,
        **_THINKING,
    ),
    _chat("thoughts", "no thought", like("chat"), enable_thinking=False),
    _chat("thoughts", "a thought of before", longer("three turns"), messages=_THOUGHT),
    Asked("thoughts", "a budget of a message", MESSAGES, _THINK, thinks_like("a thought", 4)),
    Asked("other APIs", "a response", RESPONSES, _INPUT, like("chat")),
    Asked("other APIs", "a response, streamed", RESPONSES, _INPUT | {"stream": True}, like("chat")),
    Asked("other APIs", "a message", MESSAGES, {"messages": HELLO}, like("chat")),
    Asked("other APIs", "a message, streamed", MESSAGES, {"messages": HELLO, "stream": True}, like("chat")),
    # Last, for who does not refuse it is at it for minutes.
    _chat("errors", "too many tokens asked for", refused, max_tokens=CONTEXT + 1),
)
KINDS = tuple(dict.fromkeys(each.kind for each in REQUESTS))
