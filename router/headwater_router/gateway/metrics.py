"""Prometheus metrics of the router."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from headwater.tally import Count, Distribution, Samples, Tally
from headwater_router.endpoints.breaker import BreakerState
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.total import total
from headwater_router.gateway.deployment_metrics import DeploymentMetrics
from headwater_router.gateway.key_metrics import KeyMetrics
from headwater_router.gateway.wait_metrics import WaitMetrics
from headwater_router.index import PrefixIndex
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Label

_OVERHEAD = (1e-5, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1)
_DURATION = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200)
_PER_TOKEN = (0.001, 0.002, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_LATENCY = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)


REJECTED: Final = "rejected"
OTHER: Final = "other"
WHAT: Final = {
    "first_token": "until first tokens of streamed answers, by the prefix policy.",
    "output": "between first and last tokens of streamed answers, by the prefix policy.",
}
SLO: Final = ("ttft", "tpot")
SLO_ENDS: Final = ("met", "missed", "refused")
_MOST_MODELS: Final = 1000
"""That have series of their own."""


@dataclass(slots=True, frozen=True)
class ModelMetrics:
    """What is counted of the requests for one model, bound to its label once."""

    outcomes: dict[str, Count]
    ttft: Samples
    per_token: Samples
    duration: Samples
    prompt_tokens: Count
    output_tokens: Count
    predicted_cached_tokens: Count
    actual_cached_tokens: Count
    slo: dict[tuple[str, str], Count]
    first_token: "Predicted"
    output: "Predicted"


@dataclass(slots=True, frozen=True)
class Predicted:
    """Seconds that something was to take, and took, side by side: only where both are known."""

    predicted: Count
    actual: Count
    error: Count
    """The difference of each, whichever was the longer."""

    def count(self, predicted: float, actual: float) -> None:
        self.predicted.inc(predicted)
        self.actual.inc(actual)
        self.error.inc(abs(predicted - actual))


class RouterMetrics:
    """All of them, in a registry of their own. Label children of the token path are bound once."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Answered requests, by HTTP status; 499: the client left.", "status")
        self._by_status: dict[int, Count] = {}
        decisions = self._counter(
            "decisions",
            "Requests sent to an endpoint, by what was known of its cache: exact (token ids matched against KV "
            "events), approximate (text matched against earlier requests), fallback (no prefix to go by).",
            "label",
        )
        self.decisions = {label: decisions.labels(label) for label in Label}
        self.retries = self._counter(
            "retries",
            "Failures after which a further endpoint was tried, by what they were; no_budget: none was, because too "
            "many requests were retries already.",
            "reason",
        )
        self.broken_answers = self._counter(
            "broken_answers", "Answers that an endpoint broke off after they had begun.", "endpoint"
        )
        self.ejections = self._counter(
            "ejections",
            "Times that an endpoint was taken out: it failed one request after the other (failing), or far more than "
            "its peers (outlier), or somebody asked for it (asked).",
            "endpoint",
            "reason",
        )
        self.overhead = self._histogram(
            "overhead_seconds", "From the whole request body to its dispatch: parse, hash, pick.", _OVERHEAD
        ).labels()
        self._models: dict[str, ModelMetrics] = {}
        self._outcomes = self._counter(
            "request_outcomes",
            "Requests that reached a model, by how they ended; rejected: by the router itself.",
            "model",
            "outcome",
        )
        self._ttft = self._histogram(
            "time_to_first_token_seconds",
            "From the whole request body to the first content of a streamed answer.",
            _LATENCY,
            "model",
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds", "Between two tokens of a streamed answer, on average.", _PER_TOKEN, "model"
        )
        self._duration = self._histogram(
            "request_duration_seconds", "From the whole request body to the end of its answer.", _DURATION, "model"
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, as the answers' usage says.", "model")
        self._output_tokens = self._counter("output_tokens", "Generated tokens, as the answers' usage says.", "model")
        self._predicted_cached = self._counter(
            "predicted_cached_tokens", "Prompt tokens expected to be in the chosen endpoint's cache.", "model"
        )
        self._actual_cached = self._counter(
            "actual_cached_tokens", "Prompt tokens that came from cache, as the answers' usage says.", "model"
        )
        self._slo = self._counter(
            "slo",
            "Streamed answers of which clients wanted a time to the first token (ttft) or between two (tpot), by "
            "whether it was kept: met, missed, or refused since it could not be met.",
            "model",
            "objective",
            "outcome",
        )
        self._predicted = {
            what: tuple(
                self._counter(f"{kind}_{what}_seconds", f"{text} {WHAT[what]}", "model")
                for kind, text in (
                    ("predicted", "Seconds that were predicted"),
                    ("actual", "Seconds that were taken"),
                    ("mispredicted", "Seconds by which the prediction was wrong, either way,"),
                )
            )
            for what in WHAT
        }
        self.open_requests = self._gauge("open_requests", "Forwarded requests whose answers have not ended.")
        self.open_retries = self._gauge("open_retries", "Of these, retries that count in the budget.")
        self.clients = self._gauge("clients", "Open connections of clients.")
        self.body_bytes = self._gauge("body_bytes", "Bytes of request bodies that are held in memory.")
        self.bodies_waiting = self._gauge("bodies_waiting", "Requests whose body waits for memory to be read on.")
        self.loop_lag = self._gauge(
            "loop_lag_seconds",
            "Longest time of the last minute that the router did nothing else, or had no CPU; at most 10 ms too low, "
            "50 where it is less than 60 ms, or had no CPU, and the loop has time to sleep.",
        )
        self.loop_computing = self._gauge(
            "loop_computing_seconds",
            "Longest CPU time of the last minute that the router took before it looked for what else there is; where "
            "the lag is much more, it had no CPU.",
        )
        self.endpoint_ready = self._gauge("endpoint_ready", "1 where an endpoint takes requests.", "endpoint")
        self.endpoint_in_flight = self._gauge(
            "endpoint_in_flight", "Requests sent to an endpoint whose answer has not ended.", "endpoint"
        )
        self.endpoint_prefill_tokens = self._gauge(
            "endpoint_prefill_tokens",
            "Uncached prompt tokens sent to an endpoint whose first byte has not come.",
            "endpoint",
        )
        self.endpoint_prefill_rate = self._gauge(
            "endpoint_prefill_rate",
            "Learned prompt tokens per second of an endpoint; 0 before the first answer.",
            "endpoint",
        )
        self.endpoint_running = self._gauge(
            "endpoint_reported_running", "Running requests, as the endpoint itself reports them.", "endpoint"
        )
        self.endpoint_waiting = self._gauge(
            "endpoint_reported_waiting", "Waiting requests, as the endpoint itself reports them.", "endpoint"
        )
        self.endpoint_cache_usage = self._gauge(
            "endpoint_reported_cache_usage", "KV cache in use, 0 to 1, as the endpoint itself reports it.", "endpoint"
        )
        self.endpoint_breaker = self._gauge(
            "endpoint_breaker", "The breaker's state: 0 closed, 1 half open, 2 open.", "endpoint"
        )
        self.index_entries = self._gauge("index_entries", "Blocks that the prefix index knows of, by source.", "source")
        self.index_gaps = self._gauge("index_gaps", "Times that KV events were lost and what was known was dropped.")
        self.index_unusable = self._gauge("index_unusable", "Blocks in KV events that could not be understood.")
        self.tokenizers = Tokenizers()
        """Those that are in use, once they are known."""
        self.tokenizer_trusted = self._gauge(
            "tokenizer_trusted", "1 while a model's tokenizer says what its engines say; else it is not used.", "model"
        )
        self.tokenizer_busy = self._gauge(
            "tokenizer_busy", "Prompts since the start that were matched by their text because too many waited."
        )
        self.redis_connected = self._gauge(
            "redis_connected", "1 while prefixes are shared with other routers through Redis."
        )
        shared = self._counter(
            "shared_prefixes",
            "Answered prompts, as routers tell them to one another: sent and dropped are this router's, received and "
            "unknown (of an endpoint that is not known here) are the others'.",
            "outcome",
        )
        self.shared_prefixes = {
            outcome: shared.labels(outcome) for outcome in ("sent", "dropped", "received", "unknown")
        }
        self.shared_malformed = self._counter(
            "shared_malformed", "Messages of other routers that could not be read."
        ).labels()
        self.deployments = DeploymentMetrics(self.registry)
        self.keys = KeyMetrics(self.registry)
        self.waits = WaitMetrics(self.registry)
        self.access_log_dropped = self._counter(
            "access_log_dropped", "Lines of the access log that were lost, since it could not be written."
        ).labels()

    def answered(self, status: int) -> None:
        """Count a request by the status of its answer."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self.requests.labels(status)
        counter.inc()

    def of(self, model: str) -> "ModelMetrics":
        """Of a model by the name that clients use, of which there may be any number: adapters come and go."""
        metrics = self._models.get(model)
        if metrics is None:
            if len(self._models) >= _MOST_MODELS:
                model = OTHER
            metrics = self._models.get(model)
        if metrics is None:
            metrics = self._models[model] = ModelMetrics(
                {outcome: self._outcomes.labels(model, outcome) for outcome in (*Outcome, REJECTED)},
                self._ttft.labels(model),
                self._per_token.labels(model),
                self._duration.labels(model),
                self._prompt_tokens.labels(model),
                self._output_tokens.labels(model),
                self._predicted_cached.labels(model),
                self._actual_cached.labels(model),
                {(what, end): self._slo.labels(model, what, end) for what in SLO for end in SLO_ENDS},
                *(Predicted(*(each.labels(model) for each in self._predicted[what])) for what in WHAT),
            )
        return metrics

    def forget(self, endpoint: str) -> None:
        """An endpoint of this name is gone, and so are its series."""
        for counter in (self.broken_answers, self.ejections):
            counter.forget(endpoint)

    def collect(self, fleet: Fleet, index: PrefixIndex, now: float) -> None:
        """Set the gauges; they are read only when somebody scrapes."""
        for gauge in self._endpoint_gauges():
            gauge.clear()
        for endpoint in fleet:
            self._collect_endpoint(endpoint, now)
        size = index.size()
        self.index_entries.labels("dispatches").set(size.dispatched)
        self.index_entries.labels("kv_events").set(size.stored)
        self.tokenizer_trusted.clear()
        for model in self.tokenizers.in_use():
            self.tokenizer_trusted.labels(model).set(not self.tokenizers.distrust(model))
        self.tokenizer_busy.set(self.tokenizers.busy)
        self.index_gaps.set(size.gaps)
        self.index_unusable.set(size.unusable)

    def collect_in_flight(self, fleet: Fleet) -> None:
        """That gauge alone."""
        self.endpoint_in_flight.clear()
        for endpoint in fleet:
            self.endpoint_in_flight.labels(endpoint.name).set(endpoint.in_flight)

    def _collect_endpoint(self, endpoint: Endpoint, now: float) -> None:
        load, name = total(endpoint), endpoint.name
        breaker = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
        self.endpoint_ready.labels(name).set(endpoint.takes_requests)
        self.endpoint_in_flight.labels(name).set(load.in_flight)
        self.endpoint_prefill_tokens.labels(name).set(load.prefill_tokens)
        self.endpoint_prefill_rate.labels(name).set(load.prefill_rate)
        self.endpoint_breaker.labels(name).set(breaker[endpoint.breaker.state(now)])
        # What an endpoint does not report is not 0: it has no sample.
        for gauge, value in (
            (self.endpoint_running, load.reported_running),
            (self.endpoint_waiting, load.reported_waiting),
            (self.endpoint_cache_usage, load.reported_cache_usage),
        ):
            if value is not None:
                gauge.labels(name).set(value)

    def _endpoint_gauges(self) -> tuple[Gauge, ...]:
        return (
            self.endpoint_ready,
            self.endpoint_in_flight,
            self.endpoint_prefill_tokens,
            self.endpoint_prefill_rate,
            self.endpoint_breaker,
            self.endpoint_running,
            self.endpoint_waiting,
            self.endpoint_cache_usage,
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"headwater_router_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Tally:
        return Tally(f"headwater_router_{name}", text, labels, self.registry)

    def _histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> Distribution:
        return Distribution(f"headwater_router_{name}", text, bounds, self.registry, labels)
