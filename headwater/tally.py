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

    def forget(self, value: str) -> None:
        """Drop the samples whose first label is this: it names something that is gone for good."""
        for key in [key for key in self._counts if key[0] == value]:
            del self._counts[key]

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labelnames)
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
        return [family]


class Samples:
    """Of one histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self.counts, strict=True):
            total += count
            buckets.append((_text_of(bound), total))
        return buckets


class Distribution(Collector):
    """A histogram, with one `Samples` for each combination of its labels' values."""

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry, labels: Sequence[str] = ()
    ) -> None:
        """`bounds`: upper bounds of its buckets, ascending; one for all that is above them is added."""
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labelnames = labels
        self._samples: dict[tuple[str, ...], Samples] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Samples:
        samples = self._samples.get(values)
        if samples is None:
            samples = self._samples[values] = Samples(self._bounds)
        return samples

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labelnames)
        for values, samples in self._samples.items():
            family.add_metric(values, samples.buckets(), samples.sum)
        return [family]


def _text_of(bound: float) -> str:
    """As Prometheus writes a bucket's bound."""
    return "+Inf" if bound == float("inf") else str(float(bound))
