"""Prometheus metrics of the operator."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

CONDITIONS = ("Ready", "Progressing", "Degraded", "ModelLoaded", "Routable")
_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class OperatorMetrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconcile_seconds = Histogram(
            "headwater_operator_reconcile_seconds",
            "Reconciling one ModelDeployment: observe, render, apply, status.",
            registry=self.registry,
            buckets=_DURATION,
        )
        self.reconciles = self._counter(
            "reconciles",
            "ModelDeployments reconciled, by outcome: done, or retry after an error.",
            "outcome",
        )
        self.api_requests = self._counter("api_requests", "Calls of the API server, watches aside.", "verb", "resource")
        self.applied = self._counter("applied", "Objects written since they differed from what they should be.", "kind")
        self.queue_depth = self._gauge("queue_depth", "ModelDeployments that wait to be reconciled.")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "How long the one that waits longest has waited.")
        self.loop_lag = self._gauge(
            "loop_lag_seconds",
            "Longest time of the last minute that the operator did nothing else, or had no CPU; at most 10 ms too low, "
            "50 where it is less than 60 ms, or had no CPU, and the loop has time to sleep.",
        )
        self.loop_computing = self._gauge(
            "loop_computing_seconds",
            "Longest CPU time of the last minute that the operator took before it looked for what else there is; where "
            "the lag is much more, it had no CPU.",
        )
        self.leader = self._gauge("leader", "1 while this operator holds the Lease.")
        self.desired_replicas = self._gauge(
            "desired_replicas", "Replicas that a ModelDeployment should have now.", "namespace", "deployment"
        )
        self.ready_replicas = self._gauge(
            "ready_replicas", "Replicas of it that take requests.", "namespace", "deployment"
        )
        self.condition = self._gauge(
            "condition",
            "1 where a condition of a ModelDeployment is True, 0 where it is False.",
            "namespace",
            "deployment",
            "condition",
        )
        self.gateway_complete = self._gauge(
            "gateway_complete", "1 if all routers told their load the last time they were asked."
        )

    def tell(self, namespace: str, deployment: str, conditions: Iterable[Mapping[str, str]]) -> None:
        """The conditions of a ModelDeployment, as they are in its status."""
        for each in conditions:
            labels = namespace, deployment, each["type"]
            if each["status"] == "Unknown":
                self.condition.remove(*labels)
            else:
                self.condition.labels(*labels).set(each["status"] == "True")

    def forget(self, namespace: str, deployment: str) -> None:
        """Of a ModelDeployment that is gone."""
        for gauge in (self.desired_replicas, self.ready_replicas):
            gauge.remove(namespace, deployment)
        for condition in CONDITIONS:
            self.condition.remove(namespace, deployment, condition)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"headwater_operator_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"headwater_operator_{name}", text, labels, registry=self.registry)
