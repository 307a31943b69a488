"""/v1/chat/completions."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from headwater.http.replies import EVENT_STREAM, JSON
from headwater.openai.chat import (
    AnswerMessage,
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
from headwater.openai.constraint import form_of
from headwater.openai.stream import DONE, event
from headwater.openai.usage import Usage
from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.server.answer import Form, Piece
from headwater_engine.server.asking import Question, max_tokens, new_id, now, truncated
from headwater_engine.server.detokenizer import TokenText
from headwater_engine.server.served_model import ServedModel

TokenTextOf = Callable[[int], tuple[str, list[int]]]

_encode = msgspec.json.Encoder().encode


async def ask(model: ServedModel, context: int, request: ChatCompletionRequest) -> Question:
    """Check the request against the model, and make its prompt. `context`: tokens in all. Raises APIError."""
    model.check_name(request.model)
    constraint = form_of(request)
    model.check_tokens(request.stop_token_ids, "stop_token_ids")
    text = await model.render(request)
    model.check_length(text, context, "messages")
    # A long conversation takes milliseconds to tokenize; other streams go on meanwhile.
    prompt = await asyncio.to_thread(model.encode, text, add_special_tokens=request.add_special_tokens)
    model.check_tokens(prompt, "messages")
    prompt = truncated(prompt, request, context, request.output_limit)
    limit_field = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    usual = model.usual_tokens(request, None)
    limit = max_tokens(context, prompt, request.output_limit, usual, limit_field, "messages")
    logprobs = request.top_logprobs if request.logprobs else None
    return Question(
        id=new_id("chatcmpl"),
        prompts=[prompt],
        params=model.sampling_params(request, max_tokens=limit, logprobs=logprobs),
        n=request.n,
        priority=request.priority,
        cache_salt=request.cache_salt or "",
        constraint=constraint,
    )


def form(model: ServedModel, request: ChatCompletionRequest, question: Question) -> Form:
    return _ChatStream(model, request, question) if request.stream else _WholeChat(model, request, question)


class _WholeChat:
    """The answer as one object."""

    headers = JSON

    def __init__(self, model: ServedModel, request: ChatCompletionRequest, question: Question) -> None:
        self._text_of = TokenText(model.backend)
        self._id = question.id
        self._model = request.model or model.names[0]
        self._choices = [
            Choice(index=index, message=AnswerMessage(role="assistant", content=""), finish_reason=None)
            for index in range(question.n)
        ]
        self._texts: list[list[str]] = [[] for _ in self._choices]

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        choice = self._choices[piece.index]
        self._texts[piece.index].append(piece.text)
        if piece.logprobs:
            choice.logprobs = choice.logprobs or ChoiceLogprobs([])
            choice.logprobs.content.extend(token_logprobs(piece.logprobs, self._text_of))
        choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
        return b""

    def end(self, usage: Usage) -> bytes:
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.message.content = "".join(texts)
        return _encode(
            ChatCompletion(id=self._id, created=now(), model=self._model, choices=self._choices, usage=usage)
        )


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
        self._begun: set[int] = set()

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        logprobs = ChoiceLogprobs(token_logprobs(piece.logprobs, self._text_of)) if piece.logprobs else None
        so_far = usage if self._continuous_usage else None
        written = self._chunk(
            ChunkChoice(
                index=piece.index,
                delta=Delta(content=piece.text) if piece.text else Delta(),
                finish_reason=piece.finish_reason,
                logprobs=logprobs,
                stop_reason=piece.stop_reason,
            ),
            usage=so_far,
        )
        if piece.index in self._begun:
            return written
        self._begun.add(piece.index)
        role = Delta(role="assistant", content="")
        return self._chunk(ChunkChoice(index=piece.index, delta=role, finish_reason=None), usage=so_far) + written

    def end(self, usage: Usage) -> bytes:
        return self._chunk(usage=usage) + DONE if self._include_usage else DONE

    def _chunk(self, *choices: ChunkChoice, usage: Usage | None = None) -> bytes:
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
