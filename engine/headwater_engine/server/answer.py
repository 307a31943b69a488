"""An answer on its way from the engine to its client, all within the callback in which its tokens came.

    Output ── Reader ──> Piece ── Form ──> bytes ──> the client's socket
              parts, up to a     JSON, or
              stop string        an event

A token costs no task and no queue: the request's one task sleeps until the answer has ended, or its client does not
keep up. A client that does not is sent nothing until it has read; what comes meanwhile becomes one larger piece, so an
answer that nobody reads takes no more memory than one that is not streamed.

Nothing goes out before the engine has given something. So a request that the engine refuses, or that fails in its first
step, is answered with a status that says so, streamed or not.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from headwater.http.answering import Answering
from headwater.http.headers import Headers
from headwater.openai.errors import APIError, BadRequestError, InternalServerError
from headwater.openai.usage import Usage
from headwater_engine.core.messages import FinishReason, Generate, Output, TokenLogprobs
from headwater_engine.formats.parts import Content, Part, Reasoning, joined
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.asking import Question, Speaking
from headwater_engine.server.client import EngineClient
from headwater_engine.server.detokenizer import Detokenizer
from headwater_engine.server.metrics import ServerMetrics
from headwater_engine.server.served_model import ServedModel
from headwater_engine.server.stop_strings import StopStrings

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Piece:
    """Some more of one choice."""

    index: int
    parts: list[Part]
    logprobs: list[TokenLogprobs]
    """Of the tokens that came with this piece; a token's text may come with a later one."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Content))

    @property
    def only_text(self) -> Content | Reasoning | None:
        """All that there is to this piece, where that is one text, as with nearly all."""
        if len(self.parts) != 1 or self.logprobs or self.finish_reason is not None:
            return None
        part = self.parts[0]
        return part if isinstance(part, (Content, Reasoning)) else None

    def append(self, later: "Piece") -> None:
        self.parts = joined([*self.parts, *later.parts])
        self.logprobs += later.logprobs
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


class Form(Protocol):
    """How an answer is written: as a chat or as a text, in a stream or whole."""

    headers: Headers

    def piece(self, piece: Piece, usage: Callable[[], Usage]) -> bytes:
        """What of it goes out now; nothing where it is sent whole. `usage`: says that of all choices, so far."""

    def end(self, usage: Usage) -> bytes:
        """What goes out last."""


class Reader:
    """Makes one choice's outputs into parts, and ends it at a stop string within its content."""

    def __init__(
        self, model: ServedModel, prompt: Sequence[int], params: SamplingParams, read: Speaking | None
    ) -> None:
        self._detokenizer = Detokenizer(model.backend, prompt, skip_special_tokens=params.skip_special_tokens)
        self._speech = read() if read is not None else None
        self._markers = model.markers if read is not None and params.skip_special_tokens else {}
        self._text_of = self._shown if self._markers else self._detokenizer.add
        self._stops = StopStrings(params.stop, show=params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens
        self.tokens = 0
        """That were read: none of those behind a stop string."""
        self.reasoning_tokens = 0
        self._hidden = set() if params.ignore_eos else set(params.eos_token_ids)
        self._hidden |= set(params.stop_token_ids)
        if params.include_stop_str_in_output:
            self._hidden = set()

    def read(self, output: Output, index: int) -> Piece:
        piece = Piece(index, [], output.logprobs or [], output.prompt_logprobs)
        for token in output.tokens:
            self.tokens += 1
            ended_by_token = output.finish_reason is FinishReason.STOP and token in self._hidden
            text = "" if ended_by_token else self._text_of(token)
            if self.tokens <= self._min_tokens:
                piece.parts += self._parts(text)
            elif self._show(piece, text):
                self._finish(piece, "stop")
                return piece
        if output.finish_reason is not None:
            self._end(piece, output)
        return piece

    def _shown(self, token: int) -> str:
        """A token's text, or itself where it is a marker for who reads the parts."""
        marker = self._markers.get(token)
        return self._detokenizer.add(token) if marker is None else self._detokenizer.flush() + marker

    def _parts(self, text: str) -> list[Part]:
        """Of a token's text."""
        if self._speech is None:
            return [Content(text)] if text else []
        parts = self._speech.feed(text)
        self.reasoning_tokens += self._speech.reasons
        return parts

    def _show(self, piece: Piece, text: str) -> bool:
        """Whether the answer is over: a stop string was found, or what the model goes on with is not asked for."""
        if self._speech is None:
            return self._show_content(piece, text)
        return self._show_parts(piece, self._parts(text)) or self._speech.complete

    def _show_parts(self, piece: Piece, parts: Iterable[Part]) -> bool:
        """Whether a stop string was found; then nothing behind it is shown."""
        for part in parts:
            if isinstance(part, Content):
                if self._show_content(piece, part.text):
                    return True
                continue
            if held := self._stops.flush():
                piece.parts.append(Content(held))
            piece.parts.append(part)
        return False

    def _show_content(self, piece: Piece, text: str) -> bool:
        shown, piece.stop_reason = self._stops.feed(text)
        if shown:
            piece.parts.append(Content(shown))
        return piece.stop_reason is not None

    def _end(self, piece: Piece, output: Output) -> None:
        text = self._detokenizer.flush()
        parts = [Content(text)] if self._speech is None else [*self._speech.feed(text), *self._speech.flush()]
        if self._show_parts(piece, parts):
            self._finish(piece, "stop")
            return
        if held := self._stops.flush():
            piece.parts.append(Content(held))
        piece.stop_reason = output.stop_reason
        self._finish(piece, str(output.finish_reason))

    def _finish(self, piece: Piece, reason: str) -> None:
        piece.parts = joined(piece.parts)
        piece.finish_reason = reason


class Choice:
    """One engine request. It takes its outputs as they come."""

    __slots__ = ("_answer", "_timer", "ended", "held", "index", "message", "reader")

    def __init__(self, answer: "Answer", model: ServedModel, message: Generate, index: int) -> None:
        self._answer = answer
        self.reader = Reader(model, message.prompt, message.params, answer.read)
        self._timer = answer.metrics.start()
        self.message = message
        self.index = index
        self.held: Piece | None = None
        """What is not written yet."""
        self.ended = False

    def take(self, output: Output) -> None:
        """Raises nothing, since its caller has outputs for others: what goes wrong here ends this answer."""
        try:
            self._take(output)
        except APIError as error:
            self._answer.fail(error)
        except BaseException:  # A panic within the tokenizer is no Exception.
            log.exception("request failed", request_id=self.message.id)
            self._answer.fail(InternalServerError("The server failed on this request; its log says why."))

    def _take(self, output: Output) -> None:
        answer = self._answer
        if output.finish_reason is FinishReason.ERROR:
            self.leave("error")
            raise failure_of(output, answer.form_field, engine_is_alive=answer.engine.failure is None)
        before = self.reader.tokens
        piece = self.reader.read(output, self.index)
        self._timer.tokens(self.reader.tokens - before)
        answer.count(self.index, self.reader.tokens - before, output.cached_tokens)
        if self.held is not None:
            self.held.append(piece)
            piece, self.held = self.held, None
        if piece.finish_reason is not None:
            self.leave(piece.finish_reason)
        elif not (piece.parts or piece.logprobs or piece.prompt_logprobs):
            return
        answer.show(self, piece)

    def leave(self, reason: str) -> None:
        """It has ended, or nobody wants more of it: then the engine need not go on. Only the first call counts."""
        if not self.ended:
            self.ended = True
            self._timer.finish(reason)
            self._answer.open -= 1
            self._answer.engine.leave(self.message.id)


class Answer:
    """To one HTTP request. Its choices are written as they come, in one answer."""

    def __init__(
        self,
        engine: EngineClient,
        model: ServedModel,
        metrics: ServerMetrics,
        question: Question,
        form: Form,
        client: Answering,
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.read = question.read
        self.form_field = question.form_field
        self._form = form
        self._client = client
        self._choices = [Choice(self, model, message, n) for n, message in enumerate(question.messages())]
        self.open = len(self._choices)
        """Choices that have not ended."""
        self._n = question.n
        self._echo_only = question.echo_only
        self._prompt_tokens = sum(map(len, question.prompts))
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._failure: APIError | None = None
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Ask the engine, and answer. Raises APIError, before the answer has begun or within it.

        Cancelled where the client leaves; then, as in any other case, the engine hears that nobody wants more.
        """
        try:
            for choice in self._choices:
                if not choice.ended:
                    self.engine.ask(choice.message, choice.take)
                    await asyncio.sleep(0)  # others have their turn: there may be a thousand, with long prompts
            while True:
                await self._woken.wait()
                self._woken.clear()
                await self._client.drained()
                if self._failure is not None:
                    raise self._failure
                if not self.open:
                    break
                self._write(self._take_held())
            self._finish()
        finally:
            for choice in self._choices:
                choice.leave("abort")

    # What the choices call

    def count(self, index: int, tokens: int, cached: int) -> None:
        """For the usage. Of the answers to one prompt the first tells how much of it was cached."""
        if not self._echo_only:
            self._completion_tokens += tokens
        if index % self._n == 0:
            self._cached_tokens += cached

    def show(self, choice: Choice, piece: Piece) -> None:
        """Write it now, if the client keeps up. The last one goes out together with what comes behind it."""
        if self._client.write_paused or not self.open:
            choice.held = piece
            self._woken.set()
        else:
            self._write(self._form.piece(piece, self._usage))

    def fail(self, error: APIError) -> None:
        """Of several choices, none is of use without the others."""
        if self._failure is None:
            self._failure = error
            self._woken.set()
            for choice in self._choices:
                choice.leave("abort")

    # What goes out

    def _usage(self) -> Usage:
        reasoning = None
        if self.read is not None:
            reasoning = sum(choice.reader.reasoning_tokens for choice in self._choices)
        return Usage.of(
            prompt=self._prompt_tokens,
            completion=self._completion_tokens,
            cached=self._cached_tokens,
            reasoning=reasoning,
        )

    def _take_held(self) -> bytes:
        written = [self._form.piece(choice.held, self._usage) for choice in self._choices if choice.held is not None]
        for choice in self._choices:
            choice.held = None
        return b"".join(written)

    def _write(self, data: bytes) -> None:
        if data:
            if not self._client.answer_began:
                self._client.begin(200, self._form.headers)
            self._client.write(data)

    def _finish(self) -> None:
        last = self._take_held() + self._form.end(self._usage())
        if self._client.answer_began:
            self._client.end(last)
        else:
            self._client.answer(200, self._form.headers, last)


def failure_of(output: Output, form_field: str | None = None, *, engine_is_alive: bool) -> APIError:
    """`form_field`: of the request, which asks for what cannot be enforced if that is why."""
    if output.refusal is not None:
        param = form_field if output.refusal.code == "unsupported_constraint" else None
        return BadRequestError(output.refusal.message, param=param, code=output.refusal.code)
    return InternalServerError(output.error or "", code="engine_error" if engine_is_alive else "engine_dead")
