"""/v1/chat/completions."""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from headwater.http.replies import EVENT_STREAM, JSON
from headwater.openai.chat import (
    AnswerMessage,
    AnswerToolCall,
    CalledFunction,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    TokenLogprob,
    TopLogprob,
)
from headwater.openai.stream import DONE, event
from headwater.openai.usage import Usage
from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.formats.parts import Arguments, Call, Content, Part, Reasoning
from headwater_engine.server.answer import Form, Piece
from headwater_engine.server.asking import Question, max_tokens, new_id, now, truncated
from headwater_engine.server.detokenizer import TokenText
from headwater_engine.server.manner import manner_of, wish_of
from headwater_engine.server.served_model import ServedModel

TokenTextOf = Callable[[int], tuple[str, list[int]]]

_encode = msgspec.json.Encoder().encode


async def ask(model: ServedModel, context: int, request: ChatCompletionRequest) -> Question:
    """Check the request against the model, and make its prompt. `context`: tokens in all. Raises APIError."""
    model.check_name(request.model)
    wish = wish_of(request, model.speech)
    model.check_tokens(request.stop_token_ids, "stop_token_ids")
    text = await model.render(request)
    manner = manner_of(wish, model, text)
    model.check_length(text, context, "messages")
    # A long conversation takes milliseconds to tokenize; other streams go on meanwhile.
    prompt = await asyncio.to_thread(model.encode, text, add_special_tokens=request.add_special_tokens)
    model.check_tokens(prompt, "messages")
    prompt = truncated(prompt, request, context, request.output_limit)
    limit_field = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    usual = model.usual_tokens(request, None)
    wanted = model.wanted_tokens(request.output_limit, context, prompt)
    limit = max_tokens(context, prompt, wanted, usual, limit_field, "messages")
    logprobs = request.top_logprobs if request.logprobs else None
    return Question(
        id=new_id("chatcmpl"),
        prompts=[prompt],
        params=model.sampling_params(request, max_tokens=limit, logprobs=logprobs),
        n=request.n,
        priority=request.priority,
        cache_salt=request.cache_salt or "",
        constraint=manner.constraint,
        read=manner.read,
    )


def form(model: ServedModel, request: ChatCompletionRequest, question: Question) -> Form:
    return _ChatStream(model, request, question) if request.stream else _WholeChat(model, request, question)


class _Message:
    """One choice, of which parts come. What was called has an id, and a call's end is the answer's."""

    def __init__(self, *, include_reasoning: bool) -> None:
        self._include_reasoning = include_reasoning
        self._called = False

    def shown(self, piece: Piece) -> list[Part]:
        """Those of its parts that the client is to have."""
        self._called = self._called or any(isinstance(part, Call) for part in piece.parts)
        return [part for part in piece.parts if self._include_reasoning or not isinstance(part, Reasoning)]

    def finish_reason(self, piece: Piece) -> str | None:
        return "tool_calls" if self._called and piece.finish_reason == "stop" else piece.finish_reason


def _texts(parts: Sequence[Part], kind: type[Content] | type[Reasoning]) -> str | None:
    return "".join(part.text for part in parts if isinstance(part, kind)) or None


def _calls(parts: Iterable[Part], *, whole: bool) -> list[AnswerToolCall] | None:
    """`whole`: as a message has them; else as a stream does."""
    calls: dict[int, AnswerToolCall] = {}
    for part in parts:
        match part:
            case Call(number, name):
                calls[number] = AnswerToolCall(
                    index=None if whole else number,
                    id=f"call_{uuid.uuid4().hex[:24]}",
                    type="function",
                    function=CalledFunction(name=name, arguments=""),
                )
            case Arguments(number, text) if number in calls:
                calls[number].function.arguments += text
            case Arguments(number, text):
                calls[number] = AnswerToolCall(index=number, function=CalledFunction(arguments=text))
    return list(calls.values()) or None


class _WholeChat:
    """The answer as one object."""

    headers = JSON

    def __init__(self, model: ServedModel, request: ChatCompletionRequest, question: Question) -> None:
        self._text_of = TokenText(model.backend)
        self._id = question.id
        self._model = request.model or model.names[0]
        self._messages = [_Message(include_reasoning=request.include_reasoning) for _ in range(question.n)]
        self._choices = [
            Choice(index=index, message=_EMPTY, finish_reason=None, logprobs=None) for index in range(question.n)
        ]
        self._parts: list[list[Part]] = [[] for _ in self._choices]

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        choice, message = self._choices[piece.index], self._messages[piece.index]
        self._parts[piece.index] += message.shown(piece)
        if piece.logprobs:
            choice.logprobs = choice.logprobs or ChoiceLogprobs([])
            choice.logprobs.content.extend(token_logprobs(piece.logprobs, self._text_of))
        choice.finish_reason, choice.stop_reason = message.finish_reason(piece), piece.stop_reason
        return b""

    def end(self, usage: Usage) -> bytes:
        for choice, parts in zip(self._choices, self._parts, strict=True):
            calls = _calls(parts, whole=True)
            choice.message = AnswerMessage(
                role="assistant",
                content=_texts(parts, Content) or (None if calls else ""),
                refusal=None,
                reasoning_content=_texts(parts, Reasoning),
                tool_calls=calls,
            )
        return _encode(
            ChatCompletion(id=self._id, created=now(), model=self._model, choices=self._choices, usage=usage)
        )


_EMPTY: Final = AnswerMessage(role="assistant", content="", refusal=None)


class _ChatStream:
    """The answer in chunks, the first of each choice with the role only."""

    headers = EVENT_STREAM

    def __init__(self, model: ServedModel, request: ChatCompletionRequest, question: Question) -> None:
        self._text_of = TokenText(model.backend)
        self._id = question.id
        self._created = now()
        self._model = request.model or model.names[0]
        self._include_usage = request.include_usage
        self._continuous_usage = request.continuous_usage
        self._messages = [_Message(include_reasoning=request.include_reasoning) for _ in range(question.n)]
        self._begun: set[int] = set()

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        message = self._messages[piece.index]
        parts = message.shown(piece)
        if not (parts or piece.logprobs or piece.finish_reason):
            return b""  # reasoning that nobody wants
        logprobs = ChoiceLogprobs(token_logprobs(piece.logprobs, self._text_of)) if piece.logprobs else None
        delta = Delta(
            content=_texts(parts, Content),
            reasoning_content=_texts(parts, Reasoning),
            tool_calls=_calls(parts, whole=False),
        )
        written = self._chunk(
            ChunkChoice(
                index=piece.index,
                delta=delta,
                finish_reason=message.finish_reason(piece),
                logprobs=logprobs,
                stop_reason=piece.stop_reason,
            ),
            usage=self._so_far(usage),
        )
        if piece.index in self._begun:
            return written
        self._begun.add(piece.index)
        first = ChunkChoice(index=piece.index, delta=Delta(role="assistant", content=""), finish_reason=None)
        return self._chunk(first, usage=self._so_far(usage)) + written

    def _so_far(self, usage: Usage) -> Usage | UnsetType | None:
        if self._continuous_usage:
            return usage
        return None if self._include_usage else UNSET

    def end(self, usage: Usage) -> bytes:
        return self._chunk(usage=usage) + DONE if self._include_usage else DONE

    def _chunk(self, *choices: ChunkChoice, usage: Usage | UnsetType | None) -> bytes:
        return event(
            ChatCompletionChunk(
                id=self._id, created=self._created, model=self._model, choices=list(choices), usage=usage
            )
        )


def token_logprobs(tokens: Sequence[TokenLogprobs], text_of: TokenTextOf) -> list[TokenLogprob]:
    converted = []
    for each in tokens:
        text, data = text_of(each.token)
        top = [TopLogprob(*_named(text_of(token), logprob)) for token, logprob in each.top]
        converted.append(TokenLogprob(token=text, logprob=each.logprob, bytes=data, top_logprobs=top))
    return converted


def _named(text: tuple[str, list[int]], logprob: float) -> tuple[str, float, list[int]]:
    return text[0], logprob, text[1]
