"""The first choice of a chat completion as a row of blocks: what was thought, what was said, what is to be called.

One block is open at a time. Servers send pieces of one until they begin another; a call that is gone on with behind the
beginning of the next cannot be told in the other APIs, and is an error.
"""

import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from headwater.apis.base import BrokenAnswerError

_SHORTEST_ID: Final = 8
"""Shorter ids count calls within one answer (TGI's "0"), and mean another call in the next."""


class Kind(Enum):
    REASONING = "reasoning"
    TEXT = "text"
    REFUSAL = "refusal"
    CALL = "call"


class What(Enum):
    OPENED = "opened"
    GREW = "grew"
    CLOSED = "closed"


@dataclass(slots=True)
class Block:
    kind: Kind
    index: int
    """Its place in the answer."""
    call_id: str = ""
    name: str = ""
    """Of the function that is called; its arguments are the text."""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Change(NamedTuple):
    what: What
    block: Block
    piece: str = ""
    """Where it grew: by this,"""
    logprobs: list[dict[str, Any]] = []  # noqa: RUF012
    """and of its tokens these, if they were asked for."""


class Usage(NamedTuple):
    """Tokens."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt."""
    output: int = 0
    reasoning: int = 0
    """Of the output."""


class Answer:
    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.finish: str | None = None
        """The choice's `finish_reason`; None while it goes on."""
        self.stop: str | None = None
        """The stop string that ended it, where the server says so."""
        self.usage: Usage | None = None
        self.model: str | None = None
        """Who answers, where the server says so."""
        self._open: Block | None = None
        self._calls: dict[int, Block] = {}
        """By the server's number of them."""

    @property
    def calls(self) -> bool:
        return bool(self._calls)

    @property
    def _speaks(self) -> bool:
        return self._open is not None and self._open.kind is Kind.TEXT

    def read(self, document: Any) -> None:
        """A chat completion that is not streamed. Raises BrokenAnswerError."""
        if not isinstance(document, dict) or not _choices(document):
            raise BrokenAnswerError("The endpoint's answer is no chat completion.")
        for _ in self.feed(document):
            pass
        self.end()

    def feed(self, chunk: dict[str, Any]) -> Iterator[Change]:
        """What a chunk of a stream changes. Raises BrokenAnswerError."""
        self.model = self.model or _text(chunk.get("model")) or None
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = _usage(usage)
        for choice in _choices(chunk):
            if choice.get("index", 0) != 0:
                continue
            said = choice.get("delta", choice.get("message"))
            if isinstance(said, dict):
                yield from self._said(said, _logprobs(choice))
            if isinstance(reason := choice.get("finish_reason"), str) and reason:
                self.finish = reason
                self.stop = stop if isinstance(stop := choice.get("stop_reason"), str) else None

    def end(self) -> list[Change]:
        """Nothing more comes."""
        return list(self._close())

    def _said(self, said: dict[str, Any], logprobs: list[dict[str, Any]]) -> Iterator[Change]:
        if piece := _text(said.get("reasoning_content")) or _text(said.get("reasoning")):
            yield from self._grow(Kind.REASONING, piece, [])
        if (piece := _text(said.get("content"))) or (logprobs and self._speaks):
            yield from self._grow(Kind.TEXT, piece, logprobs)
        if piece := _text(said.get("refusal")):
            yield from self._grow(Kind.REFUSAL, piece, [])
        calls = said.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(call, dict):
                yield from self._call(call, place)

    def _grow(self, kind: Kind, piece: str, logprobs: list[dict[str, Any]]) -> Iterator[Change]:
        block = self._open
        if block is None or block.kind is not kind:
            block = yield from self._begin(kind)
        block.pieces.append(piece)
        block.logprobs += logprobs
        yield Change(What.GREW, block, piece, logprobs)

    def _call(self, call: dict[str, Any], place: int) -> Iterator[Change]:
        number = call["index"] if isinstance(call.get("index"), int) else place
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        block = self._calls.get(number)
        if block is None:
            name, call_id = _text(function.get("name")), _text(call.get("id"))
            if not name:
                raise BrokenAnswerError("The endpoint called a tool without a name.")
            if len(call_id) < _SHORTEST_ID:
                call_id = f"call_{uuid.uuid4().hex}"
            block = yield from self._begin(Kind.CALL, call_id, name)
            self._calls[number] = block
        elif block is not self._open:
            raise BrokenAnswerError("The endpoint mixed the pieces of two tool calls.")
        if piece := _text(function.get("arguments")):
            block.pieces.append(piece)
            yield Change(What.GREW, block, piece)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Generator[Change, None, Block]:
        yield from self._close()
        block = Block(kind, len(self.blocks), call_id, name)
        self.blocks.append(block)
        self._open = block
        yield Change(What.OPENED, block)
        return block

    def _close(self) -> Iterator[Change]:
        if (block := self._open) is not None:
            self._open = None
            yield Change(What.CLOSED, block)


def _choices(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _logprobs(choice: dict[str, Any]) -> list[dict[str, Any]]:
    told = choice.get("logprobs")
    tokens = told.get("content") if isinstance(told, dict) else None
    return [_token(each) for each in tokens if isinstance(each, dict)] if isinstance(tokens, list) else []


def _token(told: dict[str, Any]) -> dict[str, Any]:
    top = told.get("top_logprobs")
    likely = [_bare(each) for each in top if isinstance(each, dict)] if isinstance(top, list) else []
    return {**_bare(told), "top_logprobs": likely}


def _bare(told: dict[str, Any]) -> dict[str, Any]:
    return {"token": told.get("token", ""), "logprob": told.get("logprob", 0.0), "bytes": told.get("bytes") or []}


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        _count(usage, "prompt_tokens"),
        _count(usage.get("prompt_tokens_details"), "cached_tokens"),
        _count(usage, "completion_tokens"),
        _count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and value > 0 else 0
