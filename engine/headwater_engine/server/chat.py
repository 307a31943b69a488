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
from headwater.openai.constraint import form_field
from headwater.openai.stream import DONE, event
from headwater.openai.usage import Usage
from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.formats.parts import Arguments, Call, Content, Part, Reasoning
from headwater_engine.server.answer import Form, Piece
from headwater_engine.server.asking import Question, max_tokens, new_id, now, truncated
from headwater_engine.server.detokenizer import TokenText
from headwater_engine.server.manner import manner_of, wish_of
from headwater_engine.server.saying import STAND_IN, Saying
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
        form_field=(form_field(request) or "tools") if manner.constraint is not None else None,
        read=manner.read,
    )


def form(model: ServedModel, request: ChatCompletionRequest, question: Question) -> Form:
    return _ChatStream(model, request, question) if request.stream else _WholeChat(model, request, question)


def _delta(parts: Iterable[Part], *, whole: bool, include_reasoning: bool) -> Delta:
    """What parts of one choice say. One pass, for each token goes this way. `whole`: calls as a message has them."""
    content, reasoning = "", ""
    calls: dict[int, AnswerToolCall] = {}
    for part in parts:
        match part:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
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
    return Delta(
        content=content or UNSET,
        reasoning_content=(include_reasoning and reasoning) or None,
        tool_calls=list(calls.values()) or None,
    )


_NOTHING: Final = Delta()


class _WholeChat:
    """The answer as one object."""

    headers = JSON

    def __init__(self, model: ServedModel, request: ChatCompletionRequest, question: Question) -> None:
        self._text_of = TokenText(model.backend)
        self._id = question.id
        self._model = request.model or model.names[0]
        self._include_reasoning = request.include_reasoning
        self._choices = [
            Choice(index=index, message=_EMPTY, finish_reason=None, logprobs=None) for index in range(question.n)
        ]
        self._parts: list[list[Part]] = [[] for _ in self._choices]

    def piece(self, piece: Piece, usage: Callable[[], Usage]) -> bytes:
        choice = self._choices[piece.index]
        self._parts[piece.index] += piece.parts
        if piece.logprobs:
            choice.logprobs = choice.logprobs or ChoiceLogprobs([])
            choice.logprobs.content.extend(token_logprobs(piece.logprobs, self._text_of))
        choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
        return b""

    def end(self, usage: Usage) -> bytes:
        for choice, parts in zip(self._choices, self._parts, strict=True):
            said = _delta(parts, whole=True, include_reasoning=self._include_reasoning)
            if said.tool_calls and choice.finish_reason == "stop":
                choice.finish_reason = "tool_calls"
            choice.message = AnswerMessage(
                role="assistant",
                content=said.content or (None if said.tool_calls else ""),
                refusal=None,
                reasoning_content=said.reasoning_content,
                tool_calls=said.tool_calls,
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
        self._no_usage = None if request.include_usage else UNSET
        """In chunks before the last."""
        self._include_reasoning = request.include_reasoning
        self._begun: set[int] = set()
        self._sayings: dict[tuple[int, type[Part]], Saying] = {}
        """How a text of a choice that has begun is said, by what it is."""
        self._called: set[int] = set()
        """Choices that have called a function."""

    def piece(self, piece: Piece, usage: Callable[[], Usage]) -> bytes:
        said = piece.only_text
        if said is not None and (saying := self._sayings.get((piece.index, type(said)))) is not None:
            return saying(said.text)
        delta = _delta(piece.parts, whole=False, include_reasoning=self._include_reasoning)
        if delta == _NOTHING and not (piece.logprobs or piece.finish_reason):
            return b""  # reasoning that nobody wants
        if delta.tool_calls:
            self._called.add(piece.index)
        finish_reason = piece.finish_reason
        if finish_reason == "stop" and piece.index in self._called:
            finish_reason = "tool_calls"
        so_far = usage() if self._continuous_usage else self._no_usage
        logprobs = ChoiceLogprobs(token_logprobs(piece.logprobs, self._text_of)) if piece.logprobs else None
        written = self._chunk(
            ChunkChoice(
                index=piece.index,
                delta=delta,
                finish_reason=finish_reason,
                logprobs=logprobs,
                stop_reason=piece.stop_reason,
            ),
            usage=so_far,
        )
        if piece.index in self._begun:
            return written
        self._begun.add(piece.index)
        if not self._continuous_usage:
            self._learn_sayings(piece.index)
        # As OpenAI does it: a message that only calls has no content, whether it is streamed or not.
        content = None if delta.tool_calls and not delta.content else ""
        first = ChunkChoice(index=piece.index, delta=Delta(role="assistant", content=content), finish_reason=None)
        return self._chunk(first, usage=so_far) + written

    def _learn_sayings(self, index: int) -> None:
        deltas: dict[type[Part], Delta] = {Content: Delta(content=STAND_IN)}
        if self._include_reasoning:
            deltas[Reasoning] = Delta(reasoning_content=STAND_IN)
        for part, delta in deltas.items():
            choice = ChunkChoice(index=index, delta=delta, finish_reason=None)
            self._sayings[index, part] = Saying(self._chunk(choice, usage=self._no_usage))

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
