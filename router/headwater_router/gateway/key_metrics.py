"""Metrics of API keys: who asks for how much, and who is turned away.

The numbers are those that the keys keep for themselves, so a series ends with its key. Names of keys come from the
operator's own file: nothing that a client sends becomes a label.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headwater_router.admission.keys import Failure, Keys

Samples = Iterable[tuple[Sequence[str], float]]


class KeyMetrics:
    """`clients` and `admin` are set where keys are checked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.clients: Keys | None = None
        self.admin: Keys | None = None
        for family in (
            _Read(
                CounterMetricFamily, "key_requests", "Requests that were let in.", ("key",), self._requests
            ),
            _Read(
                CounterMetricFamily,
                "key_refusals",
                "Requests of a key that were refused, by reason: rate (requests a minute), concurrency (requests at "
                "once), model (one that it may not use; those were let in before).",
                ("key", "reason"),
                self._refusals,
            ),
            _Read(GaugeMetricFamily, "key_running", "Requests of a key that have not ended.", ("key",), self._running),
            _Read(
                CounterMetricFamily,
                "authentication_failures",
                "Requests without a key that counts, by the port's users (clients, admin) and by reason: missing, "
                "unknown, disabled, ambiguous.",
                ("port", "reason"),
                self._failures,
            ),
            _Read(
                GaugeMetricFamily,
                "keys_file_in_force",
                "0 while a file of keys is refused as it is now, and the keys are those that it had before.",
                ("port",),
                self._in_force,
            ),
        ):  # fmt: skip
            registry.register(family)

    def _ports(self) -> Iterable[tuple[str, Keys]]:
        return [(port, keys) for port, keys in (("clients", self.clients), ("admin", self.admin)) if keys is not None]

    def _requests(self) -> Samples:
        return [((key.name,), use.admitted) for key, use in self.clients or ()]

    def _running(self) -> Samples:
        return [((key.name,), use.running) for key, use in self.clients or ()]

    def _refusals(self) -> Samples:
        for key, use in self.clients or ():
            yield (key.name, "rate"), use.over_rate
            yield (key.name, "concurrency"), use.over_concurrency
            yield (key.name, "model"), use.other_models

    def _failures(self) -> Samples:
        return [((port, each), keys.failures[each]) for port, keys in self._ports() for each in Failure]

    def _in_force(self) -> Samples:
        return [((port,), keys.refused is None) for port, keys in self._ports()]


class _Read(Collector):
    """A family whose samples are read when somebody scrapes."""

    def __init__(
        self,
        kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        text: str,
        labels: Sequence[str],
        read: Callable[[], Samples],
    ) -> None:
        self._kind = kind
        self._name = f"headwater_router_{name}"
        self._text = text
        self._labelnames = labels
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = self._kind(self._name, self._text, labels=self._labelnames)
        for labels, value in self._read():
            family.add_metric(labels, value)
        return [family]
