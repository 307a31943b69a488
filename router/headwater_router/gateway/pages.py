"""What a router says of itself: whether it is ready, its metrics, its version. At both ports, or at the admin's."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from headwater import __version__
from headwater.http.bodies import BodyBudget
from headwater.http.descriptors import Descriptors
from headwater.kubernetes import LOAD_METRICS
from headwater.lag import LoopLag
from headwater_router.dispatch.dispatcher import Dispatcher
from headwater_router.endpoints.fleet import Fleet
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.index import PrefixIndex

_SHARE: Final = 10
"""A page of metrics takes at most one part of so many of the time."""
_MOST_REASONS: Final = 20


@dataclass(slots=True, frozen=True)
class Page:
    status: int
    content_type: str
    body: bytes


@dataclass(slots=True, eq=False)
class _Paced:
    """A page that is made anew at most so often that it takes one part of `_SHARE` of the time."""

    page: Page | None = None
    fresh_until: float = -math.inf

    def get(self, render: Callable[[float], bytes]) -> Page:
        now = time.monotonic()
        if self.page is None or now >= self.fresh_until:
            self.page = Page(200, CONTENT_TYPE_LATEST, render(now))
            end = time.monotonic()
            self.fresh_until = end + _SHARE * (end - now)
        return self.page


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
    _all: _Paced = field(default_factory=_Paced)
    _load: _Paced = field(default_factory=_Paced)

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
        return self._all.get(self._render)

    def load(self) -> Page:
        """Of these metrics those that the operator asks for every two seconds: of a thousand deployments all the others
        are most of the work."""
        return self._load.get(self._render_load)

    def forget(self) -> None:
        """Make the pages of metrics anew the next time."""
        self._all.page = self._load.page = None

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
        self.metrics.loop_lag.set(self.lag.longest)
        self.metrics.loop_computing.set(self.lag.computed)
        self.metrics.waits.collect(self.dispatcher.room.waiting())
        self.metrics.deployments.collect(self.fleet, self.dispatcher.room.waiting_for, self.dispatcher.spread)
        return generate_latest(self.metrics.registry)

    def _render_load(self, now: float) -> bytes:
        self.dispatcher.settle(now)
        self.metrics.collect_in_flight(self.fleet)
        self.metrics.deployments.collect(self.fleet, self.dispatcher.room.waiting_for, self.dispatcher.spread)
        return generate_latest(self.metrics.registry.restricted_registry(LOAD_METRICS))


def _json(content: Any, status: int = 200) -> Page:
    return Page(status, "application/json", msgspec.json.encode(content))
