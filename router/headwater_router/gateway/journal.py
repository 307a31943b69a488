"""What is told of a request once it has ended, however it ended: its metrics, and its line in the access log."""

import math
import time
from dataclasses import dataclass, field

from headwater.http.answering import Answering
from headwater.http.connection import ClientConnection
from headwater.http.request import Request
from headwater_router.admission.keys import Admitted
from headwater_router.dispatch.call import Call
from headwater_router.gateway.access_log import AccessLog, AccessRecord, Try
from headwater_router.gateway.metrics import REJECTED, ModelMetrics, RouterMetrics
from headwater_router.gateway.usage import Usage
from headwater_router.index import PromptBuilder
from headwater_router.outcome import Outcome

CLIENT_CLOSED_REQUEST = 499
"""The status that stands for a client which left before it was answered, as nginx has it."""


@dataclass(slots=True, eq=False)
class Entry:
    """Made when a request is here, and completed on its way."""

    request: Request
    client: ClientConnection
    started: float
    """Monotonic seconds."""
    bytes_in: int
    who: Admitted
    """Its client, by the API key."""
    model: str = ""
    """Only if there is one of that name, or labels could be made up."""
    call: Call | None = None
    error: str = ""
    """The code or message of what the router itself answered."""
    path: str = field(init=False)
    """That its client asked at; endpoints may be asked at another."""

    answering: Answering = field(init=False)
    """What its answer is written to: the client's connection, or what changes what that gets."""

    def __post_init__(self) -> None:
        self.path = self.request.path
        self.answering = self.client

    @property
    def outcome(self) -> str:
        if self.client.left and not self.client.answer_began:
            return Outcome.CLIENT_LEFT  # It may have been about to be tried once more.
        if self.call is not None and self.call.stays and (outcome := self.call.stays[-1].outcome) is not None:
            return outcome
        return REJECTED


class Journal:
    def __init__(self, metrics: RouterMetrics, prompts: PromptBuilder, log: AccessLog | None) -> None:
        self._metrics = metrics
        self._prompts = prompts
        self._log = log

    def ended(self, entry: Entry) -> None:
        now = time.monotonic()
        status = entry.client.status if entry.client.answer_began else CLIENT_CLOSED_REQUEST
        self._metrics.answered(status)
        outcome = entry.outcome
        if entry.model:
            self._count(entry, outcome, self._metrics.of(entry.model), now)
        if self._log is not None:
            self._log.write(_record(entry, outcome, status, now))

    def _count(self, entry: Entry, outcome: str, metrics: ModelMetrics, now: float) -> None:
        metrics.outcomes[outcome].inc()
        metrics.duration.observe(now - entry.started)
        if entry.call is None:
            return
        if entry.call.prompt.slo is not None and entry.call.prompt.streamed:
            _count_slo(entry, entry.call, metrics, now)
        if not entry.call.stays:
            return
        dispatch = entry.call.stays[-1]
        usage = dispatch.usage
        if usage is None:
            return
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._prompts.learn(entry.call.prompt, usage.prompt_tokens)
        if usage.output_tokens:
            metrics.output_tokens.inc(usage.output_tokens)
        if usage.cached_tokens is not None:
            # Side by side: predictions of answers that do not say are left out.
            metrics.predicted_cached_tokens.inc(dispatch.decision.predicted_cached_tokens)
            metrics.actual_cached_tokens.inc(usage.cached_tokens)
        if (seconds := _seconds_per_token(entry.call, usage, now)) is not None:
            metrics.per_token.observe(seconds)


def _count_slo(entry: Entry, call: Call, metrics: ModelMetrics, now: float) -> None:
    """What was not answered was missed, unless its client left."""
    slo, last = call.prompt.slo, call.stays[-1] if call.stays else None
    assert slo is not None
    if entry.outcome == Outcome.CLIENT_LEFT:
        return
    first = last.first_token_at if last is not None else None
    per_token = _seconds_per_token(call, last.usage, now) if last is not None and last.usage is not None else None
    if slo.ttft < math.inf:
        metrics.slo["ttft", _kept(entry, first is not None and first <= slo.first_by)].inc()
    if slo.per_token < math.inf and (first is None or per_token is not None):
        metrics.slo["tpot", _kept(entry, per_token is not None and per_token <= slo.per_token)].inc()


def _kept(entry: Entry, met: bool) -> str:
    return "met" if met else "refused" if entry.error == "slo_unattainable" else "missed"


def _seconds_per_token(call: Call, usage: Usage, now: float) -> float | None:
    first = call.stays[-1].first_token_at
    if not call.prompt.streamed or first is None or not usage.output_tokens or usage.output_tokens < 2:
        return None
    return (now - first) / (usage.output_tokens - 1)


def _record(entry: Entry, outcome: str, status: int, now: float) -> AccessRecord:
    request, call = entry.request, entry.call
    record = AccessRecord(
        id=request.id.decode("latin-1"),
        client=request.client,
        key=entry.who.name,
        method=request.method.decode("latin-1"),
        path=entry.path,
        model=entry.model,
        status=status,
        outcome=outcome,
        error=entry.error,
        seconds=now - entry.started,
        bytes_in=entry.bytes_in,
        bytes_out=entry.client.bytes_sent,
    )
    if call is not None and call.stays:
        last = call.stays[-1]
        record.tries = [Try(each.endpoint.name, each.outcome or "", each.reason) for each in call.stays]
        record.decision = last.decision.label
        record.queued = call.stays[0].at - entry.started
        record.first_token = None if last.first_token_at is None else last.first_token_at - entry.started
        if (usage := last.usage) is not None:
            record.prompt_tokens, record.output_tokens = usage.prompt_tokens, usage.output_tokens
            record.cached_tokens = usage.cached_tokens
    return record
