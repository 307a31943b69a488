"""/v1/chat/completions."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

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
from headwater.openai.errors import BadRequestError
from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.server.answering import Answers, Question, Tally, new_id, now
from headwater_engine.server.detokenizer import TokenText

TokenTextOf = Callable[[int], tuple[str, list[int]]]


async def ask(answers: Answers, request: ChatCompletionRequest) -> Question:
    """Check the request against the model, and make its prompt. Raises APIError."""
    answers.model.check_name(request.model)
    check_response_format(request.response_format)
    answers.model.check_tokens(request.stop_token_ids, "stop_token_ids")
    # A long conversation takes milliseconds to render and tokenize; other streams go on meanwhile.
    prompt = await asyncio.to_thread(_tokenize, answers, request)
    limit_field = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    max_tokens = answers.max_tokens(prompt, request.output_limit, limit_field, "messages")
    logprobs = request.top_logprobs if request.logprobs else None
    return Question(
        id=new_id("chatcmpl"),
        prompts=[prompt],
        params=answers.model.sampling_params(request, max_tokens=max_tokens, logprobs=logprobs),
        n=request.n,
        priority=request.priority,
        cache_salt=request.cache_salt or "",
    )


def check_response_format(response_format: dict[str, object] | None) -> None:
    """Raises BadRequestError for structured output, which this engine does not have yet."""
    kind = (response_format or {}).get("type", "text")
    if kind != "text":
        raise BadRequestError(
            f"`response_format.type` {kind!r} is not supported yet; allowed is 'text'.", param="response_format"
        )


def _tokenize(answers: Answers, request: ChatCompletionRequest) -> list[int]:
    # The template writes the special tokens itself.
    return answers.model.encode(answers.model.render(request), add_special_tokens=False)


async def whole(answers: Answers, request: ChatCompletionRequest, question: Question) -> ChatCompletion:
    """The answer, once it is complete. Raises APIError."""
    text_of = TokenText(answers.model.backend)
    choices = [
        Choice(index=index, message=AnswerMessage(role="assistant", content=""), finish_reason=None)
        for index in range(question.n)
    ]
    tally = Tally()
    async with aclosing(answers.pieces(question, tally)) as pieces:
        async for piece in pieces:
            choice = choices[piece.index]
            choice.message.content = (choice.message.content or "") + piece.text
            if piece.logprobs:
                choice.logprobs = choice.logprobs or ChoiceLogprobs([])
                choice.logprobs.content.extend(token_logprobs(piece.logprobs, text_of))
            if piece.finish_reason is not None:
                choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
    return ChatCompletion(id=question.id, created=now(), model=request.model, choices=choices, usage=tally.usage())


async def stream(
    answers: Answers, request: ChatCompletionRequest, question: Question
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The answer in chunks, the first of each choice with the role only. Raises APIError."""
    text_of = TokenText(answers.model.backend)
    created = now()
    tally = Tally()

    def chunk(*choices: ChunkChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(id=question.id, created=created, model=request.model, choices=list(choices))

    begun: set[int] = set()
    async with aclosing(answers.pieces(question, tally)) as pieces:
        async for piece in pieces:
            if piece.index not in begun:
                begun.add(piece.index)
                role = Delta(role="assistant", content="")
                yield chunk(ChunkChoice(index=piece.index, delta=role, finish_reason=None))
            logprobs = ChoiceLogprobs(token_logprobs(piece.logprobs, text_of)) if piece.logprobs else None
            yield chunk(
                ChunkChoice(
                    index=piece.index,
                    delta=Delta(content=piece.text) if piece.text else Delta(),
                    finish_reason=piece.finish_reason,
                    logprobs=logprobs,
                    stop_reason=piece.stop_reason,
                )
            )
    if request.include_usage:
        last = chunk()
        last.usage = tally.usage()
        yield last


def token_logprobs(tokens: Sequence[TokenLogprobs], text_of: TokenTextOf) -> list[TokenLogprob]:
    converted = []
    for each in tokens:
        text, data = text_of(each.token)
        top = [TopLogprob(*_named(text_of(token), logprob)) for token, logprob in each.top]
        converted.append(TokenLogprob(token=text, logprob=each.logprob, bytes=data, top_logprobs=top))
    return converted


def _named(text: tuple[str, list[int]], logprob: float) -> tuple[str, float, list[int]]:
    return text[0], logprob, text[1]
