"""/v1/completions."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from headwater.http.replies import EVENT_STREAM, JSON
from headwater.openai.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from headwater.openai.constraint import form_field, form_of
from headwater.openai.errors import BadRequestError
from headwater.openai.stream import DONE, event
from headwater.openai.usage import Usage
from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.server.answer import Form, Piece
from headwater_engine.server.asking import Question, max_tokens, new_id, now, truncated
from headwater_engine.server.detokenizer import TokenText
from headwater_engine.server.echo import Echo, Pieces, echo_of_text, echo_of_tokens
from headwater_engine.server.saying import STAND_IN, Saying
from headwater_engine.server.served_model import ServedModel

_encode = msgspec.json.Encoder().encode

_DEFAULT_MAX_TOKENS: Final = 16


async def ask(model: ServedModel, context: int, request: CompletionRequest) -> Question:
    """Check the request against the model, and tokenize its prompts. `context`: tokens in all. Raises APIError."""
    model.check_name(request.model)
    constraint = form_of(request)
    model.check_tokens(request.stop_token_ids, "stop_token_ids")
    if request.max_tokens == 0 and not request.echo:
        raise BadRequestError("`max_tokens`: must be at least 1, or 0 where `echo` is true.", param="max_tokens")
    prompts, echoes = await asyncio.to_thread(_tokenize, model, context, request)
    if not all(prompts):
        raise BadRequestError("`prompt`: a prompt has no tokens.", param="prompt")
    # An echo alone needs one token, too, which nobody sees: it is with the first token that the prompt is scored.
    wanted = 1 if request.echo_only else request.max_tokens
    usual = model.usual_tokens(request, _DEFAULT_MAX_TOKENS)
    limits = [
        max_tokens(context, prompt, model.wanted_tokens(wanted, context, prompt), usual, "max_tokens", "prompt")
        for prompt in prompts
    ]
    prompt_logprobs = request.logprobs if request.echo else None
    return Question(
        id=new_id("cmpl"),
        model=request.model or model.names[0],
        echo_only=request.echo_only,
        prompts=prompts,
        echoes=echoes,
        params=model.sampling_params(
            request, max_tokens=min(limits), logprobs=request.logprobs, prompt_logprobs=prompt_logprobs
        ),
        n=request.n,
        priority=request.priority,
        cache_salt=request.cache_salt or "",
        constraint=constraint,
        form_field=form_field(request) if constraint is not None else None,
    )


def _tokenize(model: ServedModel, context: int, request: CompletionRequest) -> tuple[list[list[int]], list[Echo]]:
    prompts, echoes = [], []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            model.check_length(prompt, context, "prompt")
            whole = model.encode(prompt, add_special_tokens=request.add_special_tokens)
        else:
            whole = prompt
        model.check_tokens(whole, "prompt")
        tokens = truncated(whole, request, context, request.max_tokens)
        prompts.append(tokens)
        if request.echo and isinstance(prompt, str) and tokens == whole:
            echoes.append(echo_of_text(model.backend, prompt, tokens, added=request.add_special_tokens))
        elif request.echo:
            echoes.append(echo_of_tokens(model.backend, tokens))
    return prompts, echoes


def form(model: ServedModel, request: CompletionRequest, question: Question) -> Form:
    text_of = TokenText(model.backend)
    writers: list[_Writer] = []
    for number, prompt in enumerate(question.prompts):
        echo = question.echoes[number] if request.echo else Echo()
        for _ in range(question.n):
            pieces = None
            if request.logprobs is not None:
                skipped = request.skip_special_tokens
                pieces = Pieces(model.backend, prompt, text_of, skip_special_tokens=skipped)
            writers.append(_Writer(text_of, prompt, echo, pieces, echo_only=request.echo_only))
    if request.stream:
        return _CompletionStream(writers, request, question)
    return _WholeCompletion(writers, request, question)


class _Writer:
    """Turns the pieces of one choice into text and log-probabilities, with the prompt first under `echo`."""

    def __init__(
        self, text_of: TokenText, prompt: Sequence[int], echo: Echo, pieces: Pieces | None, *, echo_only: bool
    ) -> None:
        """`pieces`: of the answer; None: no log-probabilities are wanted. `echo_only`: no answer is wanted."""
        self._text_of = text_of
        self._pieces = pieces
        self._prompt = prompt
        self._offsets = echo.offsets
        self._echo = echo.text
        self._offset = len(echo.text)
        self._echo_only = echo_only

    def write(self, piece: Piece) -> tuple[str, CompletionLogprobs | None]:
        if self._echo_only:
            piece.parts, piece.logprobs, piece.stop_reason = [], [], None
            piece.finish_reason = piece.finish_reason and "length"
        text, self._echo = self._echo + piece.text, ""
        if self._pieces is None:
            return text, None
        logprobs = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for token, offset, scored in zip(self._prompt, self._offsets, piece.prompt_logprobs or [], strict=False):
            self._add(logprobs, token, offset, scored)
        for scored in piece.logprobs:
            self._add(logprobs, scored.token, self._offset, scored)
            self._offset += len(self._pieces.of(scored.token))
        return text, logprobs

    def _add(self, logprobs: CompletionLogprobs, token: int, offset: int, scored: TokenLogprobs | None) -> None:
        text = self._name(token)
        logprobs.tokens.append(text)
        logprobs.text_offset.append(offset)
        if scored is None:
            logprobs.token_logprobs.append(None)
            logprobs.top_logprobs.append(None)
        else:
            top = {text: scored.logprob}
            for other, logprob in scored.top:
                top.setdefault(self._name(other), logprob)  # a letter and its byte have one name: the likelier one's
            logprobs.token_logprobs.append(scored.logprob)
            logprobs.top_logprobs.append(top)

    def _name(self, token: int) -> str:
        """Its text, or, as OpenAI has it, the bytes of what is only part of a character: many would look the same."""
        text, data = self._text_of(token)
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data) if "\ufffd" in text else text


class _WholeCompletion:
    """The answer as one object."""

    headers = JSON

    def __init__(self, writers: list[_Writer], request: CompletionRequest, question: Question) -> None:
        self._writers = writers
        self._id = question.id
        self._model = question.model
        self._choices = [
            CompletionChoice(index=index, text="", finish_reason=None, logprobs=None) for index in range(len(writers))
        ]
        self._texts: list[list[str]] = [[] for _ in writers]

    def piece(self, piece: Piece, usage: Callable[[], Usage]) -> bytes:
        choice = self._choices[piece.index]
        text, logprobs = self._writers[piece.index].write(piece)
        self._texts[piece.index].append(text)
        choice.logprobs = _joined(choice.logprobs, logprobs)
        choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
        return b""

    def end(self, usage: Usage) -> bytes:
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.text = "".join(texts)
        return _encode(Completion(id=self._id, created=now(), model=self._model, choices=self._choices, usage=usage))


def _joined(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if first is None or second is None:
        return first or second
    first.tokens += second.tokens
    first.text_offset += second.text_offset
    first.token_logprobs += second.token_logprobs
    first.top_logprobs += second.top_logprobs
    return first


class _CompletionStream:
    """The answer in chunks."""

    headers = EVENT_STREAM

    def __init__(self, writers: list[_Writer], request: CompletionRequest, question: Question) -> None:
        self._writers = writers
        self._id = question.id
        self._created = now()
        self._model = question.model
        self._include_usage = request.include_usage
        self._continuous_usage = request.continuous_usage
        self._no_usage = None if request.include_usage else UNSET
        """In chunks before the last."""
        self._sayings: dict[int, Saying] = {}
        """How text of a choice is said."""

    def piece(self, piece: Piece, usage: Callable[[], Usage]) -> bytes:
        text, logprobs = self._writers[piece.index].write(piece)
        if logprobs is None and piece.finish_reason is None and not self._continuous_usage:
            return self._saying(piece.index)(text)
        return self._chunk(
            CompletionChoice(
                index=piece.index,
                text=text,
                finish_reason=piece.finish_reason,
                logprobs=logprobs,
                stop_reason=piece.stop_reason,
            ),
            usage=usage() if self._continuous_usage else self._no_usage,
        )

    def _saying(self, index: int) -> Saying:
        if index not in self._sayings:
            choice = CompletionChoice(index=index, text=STAND_IN, finish_reason=None, logprobs=None)
            self._sayings[index] = Saying(self._chunk(choice, usage=self._no_usage))
        return self._sayings[index]

    def end(self, usage: Usage) -> bytes:
        return self._chunk(usage=usage) + DONE if self._include_usage else DONE

    def _chunk(self, *choices: CompletionChoice, usage: Usage | UnsetType | None) -> bytes:
        return event(
            Completion(id=self._id, created=self._created, model=self._model, choices=list(choices), usage=usage)
        )
