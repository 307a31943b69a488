"""Counters and histograms that cost an addition: Prometheus's own take a lock and two calls for each.

They are read when somebody scrapes, through the collector that a `Tally` or a `Distribution` is.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Count:
    """One sample."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Tally(Collector):
    """A counter, with one `Count` for each combination of its labels' values."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._labelnames = labels
        self._counts: dict[tuple[str, ...], Count] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: object) -> Count:
        key = tuple(map(str, values))
        if len(key) != len(self._labelnames):
            raise ValueError(f"{self._name} has the labels {', '.join(self._labelnames)}, found {len(key)} values")
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = Count()
        return count

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labelnames)
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
        return [family]


class Distribution(Collector):
    """A histogram."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        """`bounds`: upper bounds of its buckets, ascending; one for all that is above them is added."""
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((_text_of(bound), total))
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], buckets, self._sum)
        return [family]


def _text_of(bound: float) -> str:
    """As Prometheus writes a bucket's bound."""
    return "+Inf" if bound == float("inf") else str(float(bound))
