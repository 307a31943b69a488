"""An answer as a client of OpenAI's API or of Anthropic's reads it, whole or as a stream; what has another shape breaks
the contract."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

REASONS = {"stop", "length", "tool_calls", "content_filter"}


class BrokenContractError(AssertionError):
    """What no client of the API would understand, or what should have been an answer and is none."""


@dataclass(slots=True)
class Choice:
    text: str = ""
    reason: str | None = None
    thought: str = ""
    logprobs: int = 0
    """Tokens with their log-probabilities."""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    """Name, id and arguments of each call of a tool."""


@dataclass(slots=True)
class Answer:
    status: int
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    message: str = ""
    """Of a refusal."""

    @property
    def refused(self) -> bool:
        return 400 <= self.status < 500

    @property
    def failed(self) -> bool:
        """By the server's own fault, as it says."""
        return self.status >= 500

    @property
    def texts(self) -> list[str]:
        return [self.choices[number].text for number in sorted(self.choices)]

    @property
    def cached_tokens(self) -> int | None:
        """Of the prompt; None where the server does not say."""
        details = (self.usage or {}).get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        return cached if isinstance(cached, int) else None


def read(status: int, kind: str, body: bytes, *, streamed: bool) -> Answer:
    """`kind`: the content type. Raises BrokenContractError."""
    if status != 200:
        return _refusal(status, body)
    if streamed:
        _demand(kind.startswith("text/event-stream"), f"a stream of {kind!r}")
        return _stream(body)
    return _whole(_object(body))


def _refusal(status: int, body: bytes) -> Answer:
    error = _object(body).get("error")
    _demand(isinstance(error, dict) and isinstance(error.get("message"), str), f"a refusal of {body[:200]!r}")
    _demand(400 <= status < 600, f"a refusal with status {status}")
    return Answer(status, message=error["message"])


def _whole(said: dict[str, Any]) -> Answer:
    if said.get("object") == "response":
        return _response(said)
    if said.get("type") == "message":
        return _message(said)
    answer = Answer(200, usage=said.get("usage"))
    _demand(bool(said.get("id")), "an answer without an id")
    for choice in said.get("choices", []):
        part = choice.get("message") or choice
        text = part.get("content") if "message" in choice else part.get("text")
        thought = part.get("reasoning_content") or ""
        read = Choice(text or "", choice.get("finish_reason"), thought, _logprobs(choice))
        _add_calls(read, part.get("tool_calls") or (), whole=True)
        answer.choices[choice["index"]] = read
    return _checked(answer)


def _stream(body: bytes) -> Answer:
    answer = Answer(200)
    data = [line[5:].strip() for line in body.decode().splitlines() if line.startswith("data:")]
    for text in data:
        if text == "[DONE]":
            continue
        said = json.loads(text)
        _demand("error" not in said, f"an error in a stream: {text[:200]}")
        if "type" in said:
            return _stream_of_items([json.loads(each) for each in data if each != "[DONE]"])
        answer.usage = said.get("usage") or answer.usage
        for choice in said.get("choices", []):
            into = answer.choices.setdefault(choice["index"], Choice())
            delta = choice.get("delta")
            part = delta if isinstance(delta, dict) else choice
            into.text += part.get("content" if isinstance(delta, dict) else "text") or ""
            into.thought += part.get("reasoning_content") or ""
            into.logprobs += _logprobs(choice)
            _add_calls(into, part.get("tool_calls") or (), whole=False)
            reason = choice.get("finish_reason")
            _demand(reason is None or into.reason is None, "two reasons to end")
            into.reason = reason or into.reason
    return _checked(answer)


def _response(said: dict[str, Any]) -> Answer:
    """Of /v1/responses."""
    _demand(said.get("status") in ("completed", "incomplete"), f"status {said.get('status')!r}")
    read = Choice(reason="stop" if said["status"] == "completed" else "length")
    for item in said["output"]:
        text = "".join(part.get("text") or "" for part in item.get("content") or ())
        if item["type"] == "message":
            read.text += text
        elif item["type"] == "reasoning":
            read.thought += text or "".join(part["text"] for part in item.get("summary") or ())
    return _checked(Answer(200, {0: read}, _usage(said["usage"])))


def _message(said: dict[str, Any]) -> Answer:
    """Of /v1/messages."""
    read = Choice(reason={"max_tokens": "length", "tool_use": "tool_calls"}.get(said["stop_reason"], "stop"))
    for block in said["content"]:
        read.text += block["text"] if block["type"] == "text" else ""
        read.thought += block["thinking"] if block["type"] == "thinking" else ""
    return _checked(Answer(200, {0: read}, _usage(said["usage"])))


def _usage(said: dict[str, Any]) -> dict[str, Any]:
    given, made = said["input_tokens"], said["output_tokens"]
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _stream_of_items(events: list[dict[str, Any]]) -> Answer:
    """Deltas joined, which are what is said in the end where that is said."""
    read = Choice()
    whole: Answer | None = None
    usage: dict[str, Any] = {}
    for event in events:
        delta = event.get("delta")
        match event["type"]:
            case "response.output_text.delta":
                read.text += event["delta"]
            case "response.reasoning_text.delta":
                read.thought += event["delta"]
            case "response.completed" | "response.incomplete":
                whole = _response(event["response"])
            case "content_block_delta" if isinstance(delta, dict):
                read.text += delta.get("text") or ""
                read.thought += delta.get("thinking") or ""
            case "message_delta":
                content = [{"type": "text", "text": read.text}, {"type": "thinking", "thinking": read.thought}]
                usage |= event["usage"]
                whole = _message({**event["delta"], "content": content, "usage": {"input_tokens": 0} | usage})
    if whole is None:
        raise BrokenContractError("a stream without its end")
    _demand(whole.choices[0].text == read.text, f"said {read.text!r}, and in the end {whole.choices[0].text!r}")
    return whole


def _checked(answer: Answer) -> Answer:
    _demand(bool(answer.choices), "an answer without choices")
    for choice in answer.choices.values():
        _demand(choice.reason in REASONS, f"finish_reason {choice.reason!r}")
    if answer.usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        _demand(all(isinstance(answer.usage.get(name), int) for name in names), f"a usage of {answer.usage}")
    return answer


def _add_calls(choice: Choice, calls: Sequence[dict[str, Any]], *, whole: bool) -> None:
    """As clients put them together: all texts behind one another."""
    for number, call in enumerate(calls):
        into = choice.calls.setdefault(number if whole else call["index"], {"id": "", "name": "", "arguments": ""})
        function = call.get("function") or {}
        into["id"] += call.get("id") or ""
        into["name"] += function.get("name") or ""
        into["arguments"] += function.get("arguments") or ""


def _logprobs(choice: dict[str, Any]) -> int:
    told = choice.get("logprobs") or {}
    return len(told.get("content") or told.get("tokens") or ())


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    _demand(isinstance(said, dict), f"no JSON object: {body[:200]!r}")
    return said  # type: ignore[no-any-return]


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise BrokenContractError(message)
