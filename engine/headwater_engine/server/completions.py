"""/v1/completions."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from headwater.openai.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from headwater.openai.errors import BadRequestError
from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.server.answering import Answers, Piece, Question, Tally, new_id, now
from headwater_engine.server.chat import check_response_format
from headwater_engine.server.detokenizer import TokenText

TokenTextOf = Callable[[int], tuple[str, list[int]]]


async def ask(answers: Answers, request: CompletionRequest) -> Question:
    """Check the request against the model, and tokenize its prompts. Raises APIError."""
    answers.model.check_name(request.model)
    check_response_format(request.response_format)
    answers.model.check_tokens(request.stop_token_ids, "stop_token_ids")
    prompts = await asyncio.to_thread(_tokenize, answers, request)
    if not all(prompts):
        raise BadRequestError("`prompt`: a prompt has no tokens.", param="prompt")
    wanted = [answers.max_tokens(prompt, request.max_tokens, "max_tokens", "prompt") for prompt in prompts]
    prompt_logprobs = request.logprobs if request.echo else None
    return Question(
        id=new_id("cmpl"),
        prompts=prompts,
        params=answers.model.sampling_params(
            request, max_tokens=min(wanted), logprobs=request.logprobs, prompt_logprobs=prompt_logprobs
        ),
        n=request.n,
        priority=request.priority,
        cache_salt=request.cache_salt or "",
    )


def _tokenize(answers: Answers, request: CompletionRequest) -> list[list[int]]:
    prompts = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            prompts.append(answers.model.encode(prompt, add_special_tokens=request.add_special_tokens))
        else:
            answers.model.check_tokens(prompt, "prompt")
            prompts.append(prompt)
    return prompts


class _Writer:
    """Turns the pieces of one choice into text and log-probabilities, with the prompt first under `echo`."""

    def __init__(self, answers: Answers, request: CompletionRequest, prompt: Sequence[int]) -> None:
        self._text_of = TokenText(answers.model.backend)
        self._wants_logprobs = request.logprobs is not None
        self._offset = 0
        self._prompt = prompt
        self._echo = answers.model.backend.decode(prompt, skip_special_tokens=True) if request.echo else ""

    def write(self, piece: Piece) -> tuple[str, CompletionLogprobs | None]:
        text, self._echo = self._echo + piece.text, ""
        if not self._wants_logprobs:
            return text, None
        logprobs = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for token, scored in zip(self._prompt, piece.prompt_logprobs or [], strict=False):
            self._add(logprobs, token, scored)
        for scored in piece.logprobs:
            self._add(logprobs, scored.token, scored)
        return text, logprobs

    def _add(self, logprobs: CompletionLogprobs, token: int, scored: TokenLogprobs | None) -> None:
        text = self._text_of(token)[0]
        logprobs.tokens.append(text)
        logprobs.text_offset.append(self._offset)
        self._offset += len(text)
        if scored is None:
            logprobs.token_logprobs.append(None)
            logprobs.top_logprobs.append(None)
        else:
            top = {self._text_of(other)[0]: logprob for other, logprob in scored.top}
            logprobs.token_logprobs.append(scored.logprob)
            logprobs.top_logprobs.append(top | {text: scored.logprob})


def _writers(answers: Answers, request: CompletionRequest, question: Question) -> list[_Writer]:
    return [_Writer(answers, request, prompt) for prompt in question.prompts for _ in range(question.n)]


async def whole(answers: Answers, request: CompletionRequest, question: Question) -> Completion:
    """The answer, once it is complete. Raises APIError."""
    writers = _writers(answers, request, question)
    choices = [CompletionChoice(index=index, text="", finish_reason=None) for index in range(len(writers))]
    tally = Tally()
    async with aclosing(answers.pieces(question, tally)) as pieces:
        async for piece in pieces:
            choice = choices[piece.index]
            text, logprobs = writers[piece.index].write(piece)
            choice.text += text
            choice.logprobs = _joined(choice.logprobs, logprobs)
            if piece.finish_reason is not None:
                choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
    return Completion(id=question.id, created=now(), model=request.model, choices=choices, usage=tally.usage())


def _joined(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if first is None or second is None:
        return first or second
    first.tokens += second.tokens
    first.text_offset += second.text_offset
    first.token_logprobs += second.token_logprobs
    first.top_logprobs += second.top_logprobs
    return first


async def stream(answers: Answers, request: CompletionRequest, question: Question) -> AsyncGenerator[Completion, None]:
    """The answer in chunks. Raises APIError."""
    writers = _writers(answers, request, question)
    created = now()
    tally = Tally()
    async with aclosing(answers.pieces(question, tally)) as pieces:
        async for piece in pieces:
            text, logprobs = writers[piece.index].write(piece)
            choice = CompletionChoice(
                index=piece.index,
                text=text,
                finish_reason=piece.finish_reason,
                logprobs=logprobs,
                stop_reason=piece.stop_reason,
            )
            yield Completion(id=question.id, created=created, model=request.model, choices=[choice])
    if request.include_usage:
        yield Completion(id=question.id, created=created, model=request.model, choices=[], usage=tally.usage())
