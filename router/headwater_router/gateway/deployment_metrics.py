"""Metrics of the ModelDeployments: what the operator scales by, and how well the cluster is followed."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from headwater.tally import Tally
from headwater_router.endpoints.deployments import Deployment
from headwater_router.endpoints.fleet import Fleet
from headwater_router.picker.classes import Kind
from headwater_router.picker.split import Split, Why

_LABELS = ("namespace", "deployment")


class Followed(Protocol):
    """A watch."""

    @property
    def kind(self) -> str: ...

    @property
    def last_word(self) -> float | None: ...


class DeploymentMetrics:
    """A deployment that is known always has its gauges, at 0 too: where they are missing, nothing is known."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.watches: Sequence[Followed] = ()
        self._in_flight = Gauge(
            "headwater_router_deployment_in_flight",
            "Requests sent to endpoints of a ModelDeployment whose answers have not ended.",
            _LABELS,
            registry=registry,
        )
        self._held = Gauge(
            "headwater_router_deployment_held",
            "Requests that wait for an endpoint of a ModelDeployment to get ready, or to have room.",
            _LABELS,
            registry=registry,
        )
        self._ready = Gauge(
            "headwater_router_deployment_ready_endpoints",
            "Endpoints of a ModelDeployment that take requests.",
            _LABELS,
            registry=registry,
        )
        of_class = (*_LABELS, "model", "class")
        self._share = Gauge(
            "headwater_router_deployment_share",
            "Share of a class of a model's requests that a deployment gets, as it was found.",
            of_class,
            registry=registry,
        )
        self._cost = Gauge(
            "headwater_router_deployment_cost",
            "What a token of a class of a model's requests costs at a deployment, over the mean of all that share it.",
            of_class,
            registry=registry,
        )
        self._sent = Tally(
            "headwater_router_deployment_requests",
            "Attempts sent to deployments that share a name, by why: weight, share (as found), explored.",
            (*_LABELS, "class", "reason"),
            registry,
        )
        self._age = Gauge(
            "headwater_router_watch_age_seconds",
            "Since the API server last said anything of a kind of object.",
            ("kind",),
            registry=registry,
        )
        self._errors = Counter(
            "headwater_router_watch_errors", "Failed tries to list or to watch a kind of object.", ("kind",),
            registry=registry,
        )  # fmt: skip

    def sent(self, deployment: Deployment, kind: Kind | None, why: Why) -> None:
        """A request for a name that several share went to one of its endpoints."""
        self._sent.labels(deployment.namespace, deployment.name, kind or "", why).inc()

    def watch_failed(self, kind: str) -> None:
        self._errors.labels(kind).inc()

    def collect(
        self, fleet: Fleet, waiting_for: Callable[[str], int], splits: Iterable[tuple[str, Kind, Split]]
    ) -> None:
        """Set the gauges; they are read only when somebody scrapes. `waiting_for`: how many wait, by deployment."""
        for gauge in (self._in_flight, self._held, self._ready, self._age, self._share, self._cost):
            gauge.clear()
        for each in splits:
            self._collect_split(*each)
        for key, deployment in fleet.deployments.items():
            labels = (deployment.namespace, deployment.name)
            self._in_flight.labels(*labels).set(0)
            self._ready.labels(*labels).set(0)
            self._held.labels(*labels).set(waiting_for(key))
        for endpoint in fleet:
            if endpoint.spec.deployment in fleet.deployments:
                deployment = fleet.deployments[endpoint.spec.deployment]
                labels = (deployment.namespace, deployment.name)
                self._in_flight.labels(*labels).inc(endpoint.in_flight)
                self._ready.labels(*labels).inc(endpoint.takes_requests)
        now = time.monotonic()
        for kind in {watch.kind for watch in self.watches}:
            words = [watch.last_word for watch in self.watches if watch.kind == kind]
            if None not in words:
                # Of all namespaces, that which has been silent the longest.
                self._age.labels(kind).set(max(now - word for word in words if word is not None))

    def _collect_split(self, model: str, kind: Kind, split: Split) -> None:
        mean = split.mean()
        for name, place in split.places.items():
            namespace, _, deployment = name.rpartition("/")
            labels = (namespace, deployment, model, kind)
            self._share.labels(*labels).set(place.share)
            if mean and (cost := place.cost) is not None:
                self._cost.labels(*labels).set(cost / mean)
