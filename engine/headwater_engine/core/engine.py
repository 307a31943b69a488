"""The engine: requests in, tokens out, one step at a time.

A step is three verbs: schedule, run, update. It knows no socket and no process; `process.py` puts it into one.
"""

import time
from collections.abc import Sequence
from itertools import count
from typing import Protocol

import structlog

from headwater_engine.core.messages import FinishReason, Generate, Output, Stats
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Chunk, Scheduler
from headwater_engine.errors import DeviceError
from headwater_engine.sampling.sampler import Sampled

log = structlog.get_logger(__name__)


class StepRunner(Protocol):
    """`Runner`, or a test's stand-in for it."""

    def run(self, plan: Sequence[Chunk]) -> list[Sampled | None]: ...


class Engine:
    """Not thread-safe: one loop owns it."""

    def __init__(self, scheduler: Scheduler, runner: StepRunner, *, max_model_len: int) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._max_model_len = max_model_len
        self._orders = count()
        self._steps = 0
        self._prompt_tokens_cached = 0
        self._prompt_tokens_computed = 0
        self._step_seconds: list[float] = []
        self._batch_sizes: list[int] = []

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, message: Generate) -> Output | None:
        """Queue a request. An Output means that it was refused at once, since it could never run."""
        if not message.prompt:
            return _error(message.id, "The prompt has no tokens.")
        if len(message.prompt) >= self._max_model_len:
            return _error(
                message.id,
                f"The prompt has {len(message.prompt)} tokens, and at most {self._max_model_len - 1} fit "
                f"into the context of {self._max_model_len} tokens beside one token of the answer.",
            )
        if message.id in self.scheduler:
            return _error(message.id, f"A request with the id {message.id!r} is running already.")
        self.scheduler.add(Request.of(message, next(self._orders)))
        return None

    def abort(self, ids: Sequence[str]) -> None:
        """Forget requests and free their blocks. Unknown ids are no error: they may have finished a moment ago."""
        for request_id in ids:
            self.scheduler.remove(request_id)

    def step(self) -> list[Output]:
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        try:
            results = self._runner.run(plan)
        except DeviceError:
            raise
        except Exception as error:
            return self._isolate(plan, error)
        outputs = self._update(plan, results)
        self._record(plan, time.perf_counter() - started)
        return outputs

    def _isolate(self, plan: Sequence[Chunk], error: Exception) -> list[Output]:
        """A step's exception fails one request, not all: the plan's requests are tried again, each alone.

        Not one of the device, after which nothing can be tried again.
        """
        log.exception("step failed", requests=[chunk.request.id for chunk in plan])
        self.scheduler.quarantine(plan)
        if len(plan) > 1:
            return []
        culprit = plan[0].request
        self.scheduler.remove(culprit.id)
        return [_error(culprit.id, f"The engine failed on this request: {error}")]

    def _update(self, plan: Sequence[Chunk], results: Sequence[Sampled | None]) -> list[Output]:
        outputs = []
        for chunk, result in zip(plan, results, strict=True):
            if result is None:
                continue
            request = chunk.request
            self.scheduler.absolve(request)
            if result.error is not None:
                self.scheduler.remove(request.id)
                outputs.append(_error(request.id, result.error))
                continue
            outputs.append(self._take(request, result))
        return outputs

    def _take(self, request: Request, result: Sampled) -> Output:
        is_first = not request.output
        reason, stop_token = request.append(result.token, self._max_model_len)
        output = Output(id=request.id, tokens=[result.token], finish_reason=reason, stop_reason=stop_token)
        if result.logprobs is not None:
            output.logprobs = [result.logprobs]
        if is_first:
            output.cached_tokens = request.cached_tokens or 0
            if request.params.prompt_logprobs is not None:
                output.prompt_logprobs = request.prompt_logprobs
            self._prompt_tokens_cached += output.cached_tokens
        if reason is not None:
            self.scheduler.remove(request.id)
        return output

    def _record(self, plan: Sequence[Chunk], seconds: float) -> None:
        self._steps += 1
        self._step_seconds.append(seconds)
        self._batch_sizes.append(sum(chunk.count for chunk in plan))
        # What a preempted request computes again counts again: it is work that was done.
        self._prompt_tokens_computed += sum(
            max(0, min(chunk.start + chunk.count, len(chunk.request.prompt)) - chunk.start) for chunk in plan
        )

    def stats(self) -> Stats:
        """A snapshot for the HTTP process; step durations and batch sizes are those since the last call."""
        cache = self.scheduler.cache
        stats = Stats(
            steps=self._steps,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            blocks_used=cache.total - cache.available,
            blocks_cached=cache.cached,
            blocks_total=cache.total,
            prompt_tokens_cached=self._prompt_tokens_cached,
            prompt_tokens_computed=self._prompt_tokens_computed,
            preemptions=self.scheduler.preemptions,
            step_seconds=self._step_seconds,
            batch_sizes=self._batch_sizes,
        )
        self._step_seconds = []
        self._batch_sizes = []
        return stats


def _error(request_id: str, message: str) -> Output:
    return Output(id=request_id, finish_reason=FinishReason.ERROR, error=message)
