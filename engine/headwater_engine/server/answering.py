"""From a request's prompts to pieces of text: what chat and text completions have in common.

One HTTP request becomes one engine request for each prompt and each of its `n` answers. Their pieces come back merged,
in the order in which the engine makes them, each with the index of its choice.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from headwater.openai.errors import APIError, BadRequestError, InternalServerError
from headwater.openai.usage import Usage
from headwater_engine.core.messages import FinishReason, Generate, Output, TokenLogprobs
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.client import EngineClient
from headwater_engine.server.detokenizer import Detokenizer
from headwater_engine.server.metrics import RequestTimer, ServerMetrics
from headwater_engine.server.served_model import ServedModel
from headwater_engine.server.stop_strings import StopStrings


@dataclass(slots=True)
class Piece:
    """Some more of one choice."""

    index: int
    text: str
    logprobs: list[TokenLogprobs]
    """Of the tokens that came with this piece; a token's text may come with a later one."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class Question:
    """All that one HTTP request asks of the engine."""

    id: str
    prompts: Sequence[Sequence[int]]
    """Token ids."""
    params: SamplingParams
    n: int
    priority: int = 0
    cache_salt: str = ""


@dataclass(slots=True)
class Tally:
    """Counts for the usage, while the pieces go by."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def usage(self) -> Usage:
        return Usage.of(prompt=self.prompt, completion=self.completion, cached=self.cached)


@dataclass(slots=True)
class Answers:
    """Asks the engine. One a process."""

    engine: EngineClient
    model: ServedModel
    metrics: ServerMetrics

    def max_tokens(self, prompt: Sequence[int], wanted: int | None, field_name: str, prompt_field: str) -> int:
        """Output tokens that a request may have: what it wants, at most what the context leaves.

        Raises BadRequestError where the prompt alone, or together with what is wanted, can never fit.
        """
        assert self.engine.ready is not None
        limit = self.engine.ready.max_model_len
        room = limit - len(prompt)
        if room < 1:
            raise BadRequestError(
                f"The prompt has {len(prompt)} tokens; the context has room for {limit}, at least one of them for "
                "the answer.",
                param=prompt_field,
                code="context_length_exceeded",
            )
        if wanted is not None and wanted > room:
            raise BadRequestError(
                f"`{field_name}` is {wanted}, but the prompt has {len(prompt)} tokens and the context has room for "
                f"{limit}: at most {room} are left for the answer.",
                param=field_name,
                code="context_length_exceeded",
            )
        return wanted if wanted is not None else room

    async def pieces(self, question: Question, tally: Tally) -> AsyncGenerator[Piece, None]:
        """The pieces of all choices. Raises APIError where the engine fails; left early, it aborts what still runs."""
        choices = [
            (prompt, number * question.n + answer, answer)
            for number, prompt in enumerate(question.prompts)
            for answer in range(question.n)
        ]
        if len(choices) == 1:
            async with aclosing(self._choice(question, *choices[0], tally)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        merged: asyncio.Queue[Piece | APIError | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._feed(merged, question, *choice, tally)) for choice in choices]
        try:
            ended = 0
            while ended < len(choices):
                match await merged.get():
                    case None:
                        ended += 1
                    case APIError() as error:
                        raise error
                    case Piece() as piece:
                        yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(
        self,
        merged: "asyncio.Queue[Piece | APIError | None]",
        question: Question,
        prompt: Sequence[int],
        index: int,
        answer: int,
        tally: Tally,
    ) -> None:
        try:
            async with aclosing(self._choice(question, prompt, index, answer, tally)) as pieces:
                async for piece in pieces:
                    merged.put_nowait(piece)
            merged.put_nowait(None)
        except APIError as error:
            merged.put_nowait(error)

    async def _choice(
        self, question: Question, prompt: Sequence[int], index: int, answer: int, tally: Tally
    ) -> AsyncGenerator[Piece, None]:
        params = question.params
        if answer:
            params = msgspec.structs.replace(params, seed=params.seed + answer)
        else:
            tally.prompt += len(prompt)
        message = Generate(
            id=f"{question.id}-{index}",
            prompt=list(prompt),
            params=params,
            priority=question.priority,
            cache_salt=question.cache_salt,
        )
        reader = Reader(self.model, prompt, params)
        timer = self.metrics.start()
        try:
            async with aclosing(self.engine.generate(message)) as outputs:
                async for output in outputs:
                    self._count(output, timer, tally, is_first_answer=answer == 0)
                    piece = reader.read(output, index)
                    if piece.finish_reason is not None:
                        timer.finish(piece.finish_reason)
                        yield piece
                        return
                    if piece.text or piece.logprobs or piece.prompt_logprobs:
                        yield piece
        finally:
            timer.finish("abort")

    def _count(self, output: Output, timer: RequestTimer, tally: Tally, *, is_first_answer: bool) -> None:
        if output.error is not None:
            timer.finish("error")
            raise _failure(output.error, engine_is_alive=self.engine.failure is None)
        timer.tokens(len(output.tokens))
        tally.completion += len(output.tokens)
        if is_first_answer:
            tally.cached += output.cached_tokens


class Reader:
    """Makes one choice's outputs into text, and ends it at a stop string."""

    def __init__(self, model: ServedModel, prompt: Sequence[int], params: SamplingParams) -> None:
        self._detokenizer = Detokenizer(model.backend, prompt)
        self._stops = StopStrings(params.stop)
        self._min_tokens = params.min_tokens
        self._tokens = 0
        self._hidden = set() if params.ignore_eos else set(params.eos_token_ids)
        self._hidden |= set(params.stop_token_ids)

    def read(self, output: Output, index: int) -> Piece:
        piece = Piece(index, "", output.logprobs or [], prompt_logprobs=output.prompt_logprobs)
        for token in output.tokens:
            self._tokens += 1
            ended_by_token = output.finish_reason is FinishReason.STOP and token in self._hidden
            text = "" if ended_by_token else self._detokenizer.add(token)
            if self._tokens <= self._min_tokens:
                piece.text += text
                continue
            shown, stop = self._stops.feed(text)
            piece.text += shown
            if stop is not None:
                piece.finish_reason, piece.stop_reason = "stop", stop
                return piece
        if output.finish_reason is not None:
            self._end(piece, output)
        return piece

    def _end(self, piece: Piece, output: Output) -> None:
        shown, stop = self._stops.feed(self._detokenizer.flush())
        piece.text += shown if stop is not None else shown + self._stops.flush()
        piece.finish_reason = "stop" if stop is not None else str(output.finish_reason)
        piece.stop_reason = stop if stop is not None else output.stop_reason


def _failure(message: str, *, engine_is_alive: bool) -> APIError:
    return InternalServerError(message, code="engine_error" if engine_is_alive else "engine_dead")


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())
