"""Prometheus metrics of the engine: what the loop says of itself, and what requests saw.

What a token counts is an addition to a number; see tally.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest

from headwater.tally import Count, Distribution, Samples, Tally
from headwater_engine.core.messages import Ready, Stats
from headwater_engine.server.vllm_metrics import VllmNames

_LATENCY = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)
_SHORT = (
    0.001,
    0.002,
    0.004,
    0.006,
    0.008,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.06,
    0.08,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1,
    2,
    5,
)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class ServerMetrics:
    """All of them, in a registry of their own."""

    def __init__(self, names: str = "headwater") -> None:
        """`names`: as of --metrics-names."""
        self.registry = CollectorRegistry()
        self.vllm = VllmNames(self.registry)
        self._pages = [self.registry]
        if "vllm" in names:
            self._pages.append(CollectorRegistry())
            self._pages[-1].register(self.vllm)
        # The router tells a restarted engine, whose cache is empty, by its process_start_time_seconds.
        ProcessCollector(registry=self.registry)
        gauge, counter, count, samples = self._gauge, self._counter, self._count, self._samples
        self.running = gauge("requests_running", "Requests that hold KV blocks and take part in steps.")
        self.waiting = gauge("requests_waiting", "Requests that wait for room.")
        self.places = gauge("requests_limit", "Requests that run at once: --max-num-seqs.")
        self.kv_cache_usage = gauge("kv_cache_usage", "Share of the KV blocks that running requests hold, 0 to 1.")
        self.kv_cached = gauge("kv_blocks_cached", "KV blocks that only the prefix cache holds: evictable.")
        self.kv_blocks = gauge("kv_blocks", "KV blocks in all.")
        self.block_size = gauge("block_size", "Tokens in one KV block.")
        self.ranks = gauge("ranks", "Processes that share the model, on all machines.")
        self.kernels = Gauge(
            "headwater_engine_kernels",
            "1 for the kernels that run; why, where they are slow ones.",
            ["kernels"],
            registry=self.registry,
        )
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens, by whether they came from the prefix cache or were computed.", "source"
        )
        self.generation_tokens = count("generation_tokens", "Output tokens.")
        self.preemptions = count("preemptions", "Requests that lost their blocks and are computed again.")
        self.steps = count("steps", "Steps of the engine's loop; it stands still only without work.")
        self.ttft = samples("time_to_first_token_seconds", "From the request to its first token.", _LATENCY)
        self.inter_token = samples("inter_token_latency_seconds", "Between two tokens of a request.", _SHORT)
        self.duration = samples("request_duration_seconds", "From the request to its last token.", _WHOLE)
        self.step_seconds = samples("step_seconds", "Duration of one step.", _SHORT)
        self.batch_tokens = samples("batch_tokens", "Tokens computed in one step.", _TOKENS)
        self.prompt_limit = gauge("prompt_tokens_limit", "Prompt tokens that a step may have beside running streams.")
        self.paced_steps = counter(
            "paced_steps", "Steps with running streams, by whether they kept --itl-objective-ms.", "objective"
        )
        self.requests = counter(
            "requests",
            "Ended requests, by finish reason: stop, length, abort (the client left) or error.",
            "finish_reason",
        )
        self.vectors = counter(
            "vectors", "Vectors and scores in answers, by what they are: embedding or score.", "kind"
        )
        self.turned_away = count("requests_turned_away", "Requests that got a 503 since too many others waited.")
        self.prompt_tokens_held = gauge("prompt_tokens_held", "Prompt tokens of all requests that run or wait.")
        self._seen = Stats(
            steps=0, running=0, waiting=0, blocks_used=0, blocks_cached=0, blocks_total=0, prompt_tokens_cached=0,
            prompt_tokens_computed=0, preemptions=0, step_seconds=[], batch_sizes=[], prompt_tokens_limit=0,
            steps_on_pace=0, steps_off_pace=0,
        )  # fmt: skip

    def page(self) -> bytes:
        """What Prometheus reads."""
        return b"".join(map(generate_latest, self._pages))

    def start(self) -> "RequestTimer":
        return RequestTimer(self)

    def ready(self, ready: Ready) -> None:
        self.kv_blocks.set(ready.num_blocks)
        self.block_size.set(ready.block_size)
        self.ranks.set(ready.ranks)
        self.kernels.labels(ready.kernels).set(1)

    def take(self, stats: Stats) -> None:
        """Each Stats once, in order: the counters in it are totals."""
        seen, self._seen = self._seen, stats
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.kv_cache_usage.set(stats.blocks_used / max(1, stats.blocks_total))
        self.kv_cached.set(stats.blocks_cached)
        self.prompt_tokens.labels("cached").inc(stats.prompt_tokens_cached - seen.prompt_tokens_cached)
        self.prompt_tokens.labels("computed").inc(stats.prompt_tokens_computed - seen.prompt_tokens_computed)
        self.preemptions.inc(stats.preemptions - seen.preemptions)
        self.steps.inc(stats.steps - seen.steps)
        self.prompt_limit.set(stats.prompt_tokens_limit)
        self.paced_steps.labels("kept").inc(stats.steps_on_pace - seen.steps_on_pace)
        self.paced_steps.labels("missed").inc(stats.steps_off_pace - seen.steps_off_pace)
        for seconds in stats.step_seconds:
            self.step_seconds.observe(seconds)
        for size in stats.batch_sizes:
            self.batch_tokens.observe(size)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"headwater_engine_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, label: str) -> Tally:
        return Tally(f"headwater_engine_{name}", text, [label], self.registry)

    def _count(self, name: str, text: str) -> Count:
        return Tally(f"headwater_engine_{name}", text, [], self.registry).labels()

    def _samples(self, name: str, text: str, bounds: Sequence[float]) -> Samples:
        return Distribution(f"headwater_engine_{name}", text, bounds, self.registry).labels()


@dataclass(slots=True)
class RequestTimer:
    """Of one engine request, from its start."""

    metrics: ServerMetrics
    started: float = field(default_factory=time.perf_counter)
    last: float | None = None
    finished: bool = False

    def tokens(self, count: int) -> None:
        """Tokens have come."""
        now = time.perf_counter()
        self.metrics.generation_tokens.inc(count)
        if self.last is None:
            self.metrics.ttft.observe(now - self.started)
        else:
            self.metrics.inter_token.observe(now - self.last)
        self.last = now

    def finish(self, reason: str) -> None:
        """Only the first call counts, so that a `finally` can say `abort` of whatever ended in no other way."""
        if not self.finished:
            self.finished = True
            self.metrics.requests.labels(reason).inc()
            self.metrics.duration.observe(time.perf_counter() - self.started)
