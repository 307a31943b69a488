"""The engine: requests in, tokens out, one step at a time.

A step is four verbs: plan, launch, settle, sample. It knows no socket and no process; `process.py` puts it into one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count

import structlog

from headwater_engine.core.grammars import Grammars, Masks
from headwater_engine.core.messages import Embed, FinishReason, Generate, Output, Refusal, Stats, Tokenizer
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Flight, Scheduler
from headwater_engine.core.step import Judge, Pending, Refused, Result, Span, TokenMasks, Worker
from headwater_engine.errors import DeviceError, RankError
from headwater_engine.grammar.matcher import GrammarError, Matcher

log = structlog.get_logger(__name__)


class Engine:
    """Not thread-safe: one loop owns it."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker: Worker,
        *,
        max_model_len: int,
        vocab_size: int,
        depth: int = 0,
        jumps: bool = True,
        checks: bool = False,
    ) -> None:
        """`depth` steps may be under way while the next is planned and launched.

        0 where the worker computes as it is told; 1 where it only queues work for a device, which then need not wait
        for what the host does between two steps. `jumps`: tokens that a grammar leaves no choice of are not drawn;
        answers are the same without. `checks`: tokens of forms are looked at once they are drawn, as a rule, instead of
        masks made for them; the worker can, and answers are the same without.
        """
        self.scheduler = scheduler
        self._worker = worker
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._depth = depth
        self._jumps = jumps
        self._grammars = Grammars(vocab_size, checks=checks)
        self._pending: tuple[Flight, Pending] | None = None
        self._orders = count()
        self._steps = 0
        self._settled_at = 0.0
        self._prompt_tokens_cached = 0
        self._prompt_tokens_computed = 0
        self._step_seconds: list[float] = []
        self._batch_sizes: list[int] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything now, as far as is known."""
        return self.scheduler.has_work or self._pending is not None

    @property
    def awaits_grammars(self) -> bool:
        """Whether a step may have something to do any moment."""
        return len(self._grammars) > 0

    def know(self, tokenizer: Tokenizer) -> None:
        """Before requests with a constraint."""
        self._grammars.begin(tokenizer)

    def close(self) -> None:
        """Nobody steps any more."""
        self._grammars.close()

    def add(self, message: Generate | Embed) -> Output | None:
        """Queue a request. An Output means that it was refused at once, since it could never run."""
        if not message.prompt:
            return _refused(message.id, "The prompt has no tokens.", code="empty_prompt")
        answer = int(isinstance(message, Generate))
        if len(message.prompt) + answer > self._max_model_len:
            return _refused(
                message.id,
                f"The prompt has {len(message.prompt)} tokens, and at most {self._max_model_len - answer} fit "
                f"into the context of {self._max_model_len} tokens"
                f"{' beside one token of the answer' if answer else ''}.",
                code="context_length_exceeded",
            )
        if not 0 <= min(message.prompt) <= max(message.prompt) < self._vocab_size:
            return _refused(
                message.id, f"The prompt has a token that is not below {self._vocab_size}.", code="unknown_token"
            )
        if message.id in self.scheduler or message.id in self._grammars:
            return _error(message.id, f"A request with the id {message.id!r} is running already.")
        if isinstance(message, Embed):
            self.scheduler.add(Request.of_vector(message, next(self._orders), self.scheduler.number))
            return None
        if message.constraint is None:
            self._queue(message)
            return None
        try:
            self._grammars.take(message)
        except GrammarError as error:
            return _no_grammar(message.id, error)
        return None

    def _queue(self, message: Generate, matcher: Matcher | None = None) -> None:
        request = Request.of(message, next(self._orders), self._max_model_len, self.scheduler.number, matcher)
        self._grammars.want(request)
        self.scheduler.add(request)

    def abort(self, ids: Sequence[str]) -> None:
        """Forget requests and free their blocks. Unknown ids are no error: they may have finished a moment ago."""
        for request_id in ids:
            self._grammars.drop(request_id)
            self.scheduler.remove(request_id)

    def step(self) -> list[Output]:
        """Outputs of this step, or at depth 1 of the one before it."""
        outputs: list[Output] = []
        for message, made in self._grammars.made():
            if isinstance(made, GrammarError):
                outputs.append(_no_grammar(message.id, made))
            else:
                self._queue(message, made)
        started = time.perf_counter()
        flight = self.scheduler.plan()
        if flight is not None:
            flight.started = started
            with self._isolated(flight, outputs):
                self._worker.launch(flight.step)
        self._settle(outputs)
        if flight is not None and flight in self.scheduler.flights:
            with self._isolated(flight, outputs):
                self._pending = flight, self._sample(flight, outputs)
        if self._depth == 0:
            self._settle(outputs)
        if flight is None and self._pending is None:
            self._grammars.rest(self.scheduler.running)
        return outputs

    def _sample(self, flight: Flight, outputs: list[Output]) -> Pending:
        """Of tokens that may come next: by masks, which were made while the device computed how likely they are, or as
        tokens that are drawn without turn out to be.

        Whose mask is late gives no token in this step.
        """
        if not flight.step.masked:
            return self._worker.sample()
        spans = {
            request: span
            for request, span in zip(flight.requests, flight.step.spans, strict=True)
            if request.matcher is not None and self.scheduler.knows(request) and request.gives(span)
        }
        masks = self._masks(list(spans), spans, outputs)
        unmasked = {request.seat: request for request in masks.unmasked}
        if not unmasked:
            return self._worker.sample(masks.tokens)

        def look(drawn: Mapping[int, int]) -> Refused:
            refused, failed = self._grammars.refused((unmasked[seat], token) for seat, token in drawn.items())
            seats = {request.seat for request in refused} | {request.seat for request, _ in failed}
            for request, error in failed:
                self._fail(request, error, outputs)
            masks = self._masks(refused, spans, outputs).tokens if refused else TokenMasks([], memoryview(b""))
            return Refused(seats, masks)

        return self._worker.sample(masks.tokens, Judge(unmasked.keys(), look))

    def _masks(self, requests: Sequence[Request], spans: Mapping[Request, Span], outputs: list[Output]) -> Masks:
        masks = self._grammars.masks(requests)
        for request in masks.late:
            request.withhold(spans[request])
        for request, error in masks.failed:
            self._fail(request, error, outputs)
        return masks

    def _fail(self, request: Request, error: GrammarError, outputs: list[Output]) -> None:
        self.scheduler.remove(request.id)
        outputs.append(_no_grammar(request.id, error))

    def _settle(self, outputs: list[Output]) -> None:
        """Take in what the step gave that was sampled last, and have masks made for what is to come."""
        if self._pending is not None:
            self._take_in(*self._pending, outputs)
        self._grammars.make_wanted()

    def _take_in(self, flight: Flight, pending: Pending, outputs: list[Output]) -> None:
        self._pending = None
        result = None
        with self._isolated(flight, outputs):
            result = pending.wait()
        if result is None:
            return
        self.scheduler.settle(flight)
        self._record(flight)
        for place, (request, span) in enumerate(zip(flight.requests, flight.step.spans, strict=True)):
            if self.scheduler.knows(request):
                self._take(request, span, place, result, outputs)

    @contextmanager
    def _isolated(self, flight: Flight, outputs: list[Output]) -> Iterator[None]:
        """A step's exception fails one request, not all, and costs no more than the step.

        Not one of the device or of a rank, after which nothing can be tried again.
        """
        try:
            yield
        except (DeviceError, RankError):
            raise
        except Exception as error:
            log.exception("step failed", requests=[request.id for request in flight.requests])
            culprit = self.scheduler.retract(flight)
            if culprit is not None:
                self.scheduler.remove(culprit.id)
                outputs.append(_error(culprit.id, f"The engine failed on this request: {error}"))

    def _take(self, request: Request, span: Span, place: int, result: Result, outputs: list[Output]) -> None:
        """What a step gave to one request."""
        if (failure := result.errors.get(place)) is not None:
            self.scheduler.remove(request.id)
            outputs.append(_error(request.id, failure))
            return
        tokens = result.tokens[place]
        request.settle(span, len(tokens))
        if (vector := result.vectors.get(place)) is not None:
            self.scheduler.remove(request.id)
            cached = request.cached_tokens or 0
            self._prompt_tokens_cached += cached
            outputs.append(Output(id=request.id, vector=vector, cached_tokens=cached, finish_reason=FinishReason.STOP))
            return
        if request.wants_prompt_logprobs:
            if not request.prompt_logprobs:  # the first one has none
                request.prompt_logprobs.append(None)
            request.prompt_logprobs += result.prompt_logprobs.get(place, [])
        if not tokens:
            return
        try:
            outputs.append(self._append(request, tokens, result, place))
        except GrammarError as error:
            self._fail(request, error, outputs)

    def _append(self, request: Request, tokens: Sequence[int], result: Result, place: int) -> Output:
        output = Output(id=request.id)
        if not request.output:
            output.cached_tokens = request.cached_tokens or 0
            if request.params.prompt_logprobs is not None:
                output.prompt_logprobs = request.prompt_logprobs
            self._prompt_tokens_cached += output.cached_tokens
        for token in chain(tokens, request.force() if self._jumps else ()):
            output.finish_reason, output.stop_reason = request.append(token)
            output.tokens.append(token)
            if output.finish_reason is not None:
                self.scheduler.remove(request.id)
                break
        if output.finish_reason is None:
            self._grammars.want(request)
        if place in result.logprobs:
            output.logprobs = result.logprobs[place][: len(output.tokens)]
        return output

    def _record(self, flight: Flight) -> None:
        now = time.perf_counter()
        seconds = now - max(flight.started, self._settled_at)
        self._settled_at = now
        self._steps += 1
        self._step_seconds.append(seconds)
        spans = flight.step.spans
        size = sum(span.count for span in spans)
        self._batch_sizes.append(size)
        streams = sum(
            span.sampled == span.count or (span.sampled > 0 and span.start >= len(request.prompt))
            for request, span in zip(flight.requests, spans, strict=True)
        )
        self.scheduler.pace.learn(streams, size - streams, seconds)
        # What a preempted request computes again counts again: it is work that was done.
        self._prompt_tokens_computed += sum(
            max(0, min(span.start + span.count, len(request.prompt)) - span.start)
            for request, span in zip(flight.requests, spans, strict=True)
        )

    def stats(self) -> Stats:
        """A snapshot for the HTTP process; step durations and batch sizes are those since the last call."""
        cache = self.scheduler.cache
        stats = Stats(
            steps=self._steps,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + len(self._grammars),
            blocks_used=cache.total - cache.available,
            blocks_cached=cache.cached,
            blocks_total=cache.total,
            prompt_tokens_cached=self._prompt_tokens_cached,
            prompt_tokens_computed=self._prompt_tokens_computed,
            preemptions=self.scheduler.preemptions,
            step_seconds=self._step_seconds,
            batch_sizes=self._batch_sizes,
            prompt_tokens_limit=self.scheduler.pace.prompt_tokens,
            steps_on_pace=self.scheduler.pace.kept,
            steps_off_pace=self.scheduler.pace.missed,
        )
        self._step_seconds = []
        self._batch_sizes = []
        return stats


def _refused(request_id: str, message: str, *, code: str) -> Output:
    return Output(id=request_id, finish_reason=FinishReason.ERROR, refusal=Refusal(code=code, message=message))


def _no_grammar(request_id: str, error: GrammarError) -> Output:
    return _refused(
        request_id, f"The form that was asked for cannot be enforced: {error}.", code="unsupported_constraint"
    )


def _error(request_id: str, message: str) -> Output:
    return Output(id=request_id, finish_reason=FinishReason.ERROR, error=message)
