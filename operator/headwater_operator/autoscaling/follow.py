"""Follows the load that the gateway reports, and keeps for each autoscaled ModelDeployment how many replicas it wants.

Decisions are made here and carried out as the resource is reconciled, which each of them asks for. What must survive
a restart lies in `status.autoscaling`.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import structlog

from headwater.resource import Autoscaling
from headwater_operator.autoscaling.decide import LoadHistory, ScaleDecision, ScaleMemory, decide
from headwater_operator.autoscaling.gateway import GatewayReport, ask_gateways, router_urls
from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import ENDPOINT_SLICE, Key
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics

log = structlog.get_logger(__name__)

_TOLD: Final = 5
"""Percent by which a share must have moved to be told."""
_LOOK_FOR_ROUTERS: Final = 10.0
"""Seconds between two looks at which routers there are."""


class Scaling:
    """One for the whole operator."""

    def __init__(self, settings: OperatorSettings, cluster: Cluster, metrics: OperatorMetrics) -> None:
        self._settings = settings
        self._cluster = cluster
        self._metrics = metrics
        self._report: GatewayReport | None = None
        self._rules: dict[Key, Autoscaling] = {}
        self._histories: dict[Key, LoadHistory] = {}
        self._decisions: dict[Key, ScaleDecision] = {}
        self._routers: tuple[float, list[str]] = (float("-inf"), [])
        """When they were looked up, and their URLs."""
        self._told: dict[Key, dict[tuple[str, str], int]] = {}
        """Percent of each class of requests, as they are in the status."""

    def follow(self, key: Key, rule: Autoscaling, current: int, memory: dict[str, Any] | None) -> ScaleDecision:
        """Have this ModelDeployment scaled from now on. Returns what was decided last.

        `current`, `memory`: how many replicas it has been told to have and what is written down, for the first time.
        """
        self._rules[key] = rule
        decision = self._decisions.get(key) or ScaleDecision(current, "no load known yet", ScaleMemory.read(memory))
        bounded = min(max(decision.desired, rule.min), rule.max)
        self._decisions[key] = dataclasses.replace(decision, desired=bounded)
        return self._decisions[key]

    def forget(self, key: Key) -> None:
        for known in (self._rules, self._histories, self._decisions):
            known.pop(key, None)

    def routable(self, key: Key, before: bool | None) -> bool | None:
        """Whether all gateways have endpoints of it; None where they have not all said.

        `before`: what was known last, which holds until a new operator has asked for the first time.
        """
        if self._report is None:
            return before
        load = self._report.deployments.get((key.namespace, key.name))
        if load is None or (load.ready_endpoints and not load.complete):
            return None
        return load.ready_endpoints > 0

    def shares(self, key: Key, before: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """`status.shares`: what it gets of each class of requests, where routers find that out; else None.

        `before`: what it was, which holds until a new operator has asked for the first time.
        """
        if self._report is None:
            return before
        told = self._told.get(key, {})
        return [{"name": name, "class": kind, "percent": told[name, kind]} for name, kind in sorted(told)] or None

    @property
    def pods(self) -> dict[str, int]:
        """Requests in flight by pod, as far as is known."""
        return dict(self._report.pods) if self._report else {}

    async def run(self, add: Callable[[Key], None]) -> None:
        """Ask the gateway again and again; `add` is given whoever has to be reconciled."""
        if self._settings.gateway_service is None:
            log.warning("no --gateway-service: nothing is autoscaled, and Routable stays unknown")
            return
        async with httpx.AsyncClient(timeout=self._settings.gateway_interval) as client:
            while True:
                report = await self._ask(client)
                for key in self._take(report):
                    add(key)
                await asyncio.sleep(self._settings.gateway_interval)

    async def _ask(self, client: httpx.AsyncClient) -> GatewayReport:
        now = time.monotonic()
        if now - self._routers[0] > _LOOK_FOR_ROUTERS or not self._routers[1]:
            self._routers = (now, await self._find_routers())
        report = await ask_gateways(client, self._routers[1])
        self._metrics.gateway_complete.set(report.complete)
        if report.failures and (self._report is None or report.failures.keys() != self._report.failures.keys()):
            log.warning("routers do not tell their load", routers=dict(report.failures))
        return report

    async def _find_routers(self) -> list[str]:
        namespace, _, name = (self._settings.gateway_service or "").partition("/")
        try:
            slices, _ = await self._cluster.list(ENDPOINT_SLICE, namespace, f"kubernetes.io/service-name={name}")
        except ApiError as error:
            log.warning("the routers cannot be looked up", reason=str(error))
            return []
        return router_urls(slices)

    def _take(self, report: GatewayReport) -> set[Key]:
        """Take in a report. Returns who has to be reconciled."""
        changed = self._take_news(report) if report is not self._report else set()
        now = time.time()
        for key, rule in self._rules.items():
            old = self._decisions[key]
            new = self._decisions[key] = self._decide(key, rule, report, now)
            if new.desired != old.desired or new.memory.written() != old.memory.written():
                changed.add(key)
        return changed

    def _take_news(self, report: GatewayReport) -> set[Key]:
        """Returns for whom it says something else than the last one."""
        before = {key: self.routable(key, None) for key in self._known(self._report)}
        self._report = report
        moved = self._take_shares(report)
        known = self._known(report) | before.keys()
        return moved | {key for key in known if before.get(key) != self.routable(key, None)}

    def _take_shares(self, report: GatewayReport) -> set[Key]:
        """Returns whose have moved. Small moves are not told: each would be a write."""
        moved: set[Key] = set()
        for key in {Key(*name) for name in report.shares} | self._told.keys() if report.complete else ():
            before = self._told.get(key, {})
            found = report.shares.get((key.namespace, key.name), {})
            now = {what: _percent(share, before.get(what)) for what, share in found.items()}
            if now != before:
                moved.add(key)
            self._told[key] = now
            if not now:
                del self._told[key]
        return moved

    def _decide(self, key: Key, rule: Autoscaling, report: GatewayReport, now: float) -> ScaleDecision:
        history = self._histories.setdefault(key, LoadHistory(self._settings.gateway_interval))
        load = report.deployments.get((key.namespace, key.name))
        if load is not None:
            keep = max(rule.stable_window, rule.panic_window).total_seconds()
            history.add(now, load.in_flight, load.held, complete=load.complete, keep=keep)
        last = self._decisions[key]
        return decide(rule, history, last.desired, now, last.memory)

    def _known(self, report: GatewayReport | None) -> set[Key]:
        return {Key(*name) for name in report.deployments} if report else set()


def _percent(share: float, before: int | None) -> int:
    percent = 100 * share
    return before if before is not None and abs(percent - before) < _TOLD else _TOLD * round(percent / _TOLD)
