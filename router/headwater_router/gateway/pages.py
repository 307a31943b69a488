"""What a router says of itself: whether it is ready, its metrics, its version. At both ports, or at the admin's."""

import math
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from headwater import __version__
from headwater.http.bodies import BodyBudget
from headwater.http.descriptors import Descriptors
from headwater.lag import LoopLag
from headwater_router.dispatch.dispatcher import Dispatcher
from headwater_router.endpoints.fleet import Fleet
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.index import PrefixIndex

_SHARE: Final = 10
"""The metrics page is made anew at most so often that it takes one part of so many of the time."""
_MOST_REASONS: Final = 20


@dataclass(slots=True, frozen=True)
class Page:
    status: int
    content_type: str
    body: bytes


@dataclass(slots=True, eq=False)
class Pages:
    fleet: Fleet
    index: PrefixIndex
    metrics: RouterMetrics
    dispatcher: Dispatcher
    bodies: BodyBudget
    descriptors: Descriptors
    lag: LoopLag
    draining: bool = False
    _metrics_page: Page | None = None
    _fresh_until: float = -math.inf

    def ready(self) -> Page:
        """Whether requests should come here: the router can tell where they go, and is not about to end.

        On Kubernetes it can as soon as it has heard of all that is there, which may be nothing yet.
        """
        ready = sum(endpoint.takes_requests for endpoint in self.fleet)
        can_route = self.fleet.listed if self.fleet.kubernetes else bool(ready)
        status = "draining" if self.draining else "ready" if can_route else "no endpoint is ready"
        content: dict[str, Any] = {"status": status, "ready_endpoints": ready, "endpoints": len(self.fleet)}
        reasons = {endpoint.name: why for endpoint in self.fleet if (why := endpoint.why_not())}
        if reasons:
            content["not_ready"] = dict(list(reasons.items())[:_MOST_REASONS])
        return _json(content, 200 if status == "ready" else 503)

    def prometheus(self) -> Page:
        now = time.monotonic()
        if self._metrics_page is None or now >= self._fresh_until:
            self._metrics_page = Page(200, CONTENT_TYPE_LATEST, self._render(now))
            end = time.monotonic()
            self._fresh_until = end + _SHARE * (end - now)
        return self._metrics_page

    def forget(self) -> None:
        """Make the metrics page anew the next time."""
        self._metrics_page = None

    def version(self) -> Page:
        return _json({"version": __version__})

    def _render(self, now: float) -> bytes:
        self.dispatcher.settle(now)
        self.metrics.collect(self.fleet, self.index, now)
        budget = self.dispatcher.budget
        self.metrics.open_requests.set(budget.open_requests)
        self.metrics.open_retries.set(budget.retries)
        self.metrics.clients.set(self.descriptors.clients)
        self.metrics.body_bytes.set(self.bodies.in_flight)
        self.metrics.bodies_waiting.set(self.bodies.waiting)
        self.metrics.loop_lag.set(self.lag.take())
        self.metrics.waits.collect(self.dispatcher.room.waiting())
        self.metrics.deployments.collect(self.fleet, self.dispatcher.room.waiting_for, self.dispatcher.spread)
        return generate_latest(self.metrics.registry)


def _json(content: Any, status: int = 200) -> Page:
    return Page(status, "application/json", msgspec.json.encode(content))
