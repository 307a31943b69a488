"""Our metrics under vLLM's names, for pickers, dashboards and autoscalers that were made for it.

Made of our own when somebody scrapes, so nothing is counted twice. Names, types and labels are those of vLLM 0.32; the
bounds of histograms are ours.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_OURS: Final = "headwater_engine_"
GAUGES: Final = {
    "vllm:num_requests_running": "requests_running",
    "vllm:num_requests_waiting": "requests_waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
}
COUNTERS: Final = {
    "vllm:prompt_tokens": "prompt_tokens",
    "vllm:prefix_cache_queries": "prompt_tokens",
    "vllm:generation_tokens": "generation_tokens",
    "vllm:num_preemptions": "preemptions",
}
"""Sums over all labels of ours."""
HISTOGRAMS: Final = {
    "vllm:time_to_first_token_seconds": "time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds": "request_duration_seconds",
}


class VllmNames(Collector):
    """Reads `ours` when it is read."""

    def __init__(self, ours: CollectorRegistry) -> None:
        self._ours = ours
        self.model_name = ""
        """The first served name; known once the model is."""

    def collect(self) -> Iterable[Metric]:
        ours = {family.name.removeprefix(_OURS): family for family in self._ours.collect()}
        labels, values = ["model_name", "engine"], [self.model_name, "0"]
        for name, source in GAUGES.items():
            gauge = GaugeMetricFamily(name, ours[source].documentation, labels=labels)
            gauge.add_metric(values, _total(ours[source]))
            yield gauge
        for name, source in COUNTERS.items():
            counter = CounterMetricFamily(name, ours[source].documentation, labels=labels)
            counter.add_metric(values, _total(ours[source]))
            yield counter
        hits = CounterMetricFamily("vllm:prefix_cache_hits", "Prompt tokens from the prefix cache.", labels=labels)
        hits.add_metric(values, _total(ours["prompt_tokens"], source="cached"))
        yield hits
        ended = CounterMetricFamily("vllm:request_success", ours["requests"].documentation, labels=[*labels, _REASON])
        for reason in ("stop", "length", "abort", "error"):
            ended.add_metric([*values, reason], _total(ours["requests"], finish_reason=reason))
        yield ended
        for name, source in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, ours[source].documentation, labels=labels)
            buckets = [(each.labels["le"], each.value) for each in ours[source].samples if "le" in each.labels]
            histogram.add_metric(values, buckets, sum_value=_named(ours[source], "_sum"))
            yield histogram
        config = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=[*_CACHE, "engine"])
        config.add_metric([str(int(_total(ours[source]))) for source in ("block_size", "kv_blocks")] + ["0"], 1)
        yield config


_REASON: Final = "finished_reason"
_CACHE: Final = ("block_size", "num_gpu_blocks")


def _total(family: Metric, **labels: str) -> float:
    """The sum of its samples that have these labels."""
    samples = (each for each in family.samples if not each.name.endswith("_created"))
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


def _named(family: Metric, end: str) -> float:
    return sum(each.value for each in family.samples if each.name.endswith(end))
