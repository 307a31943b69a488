"""When the engines of a deployment are asked for their adapters: as they get ready, and again every now and then."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import httpx

from headwater.backends.base import Backend
from headwater.kubernetes import HTTP_PORT
from headwater_operator.cluster.admin_keys import AdminKeys
from headwater_operator.cluster.kinds import Key
from headwater_operator.diagnose.pods import EnginePod, Problem
from headwater_operator.reconcile.adapter_sync import (
    AdapterState,
    Change,
    Wanted,
    outset,
    summarize,
    sync_adapters,
    wanted,
)
from headwater_operator.reconcile.errands import Errands
from headwater_operator.reconcile.reconciliation import Reconciliation

_TRUSTED_FOR: Final = 60.0
"""Seconds for which an engine that has all its adapters is not asked again."""
_TRIED_AGAIN: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Answer:
    wanted: Wanted
    states: Sequence[AdapterState]
    at: float

    def holds(self, wanted: Wanted, now: float) -> bool:
        complete = all(state.loaded for state in self.states)
        return self.wanted == wanted and now - self.at < (_TRUSTED_FOR if complete else _TRIED_AGAIN)


@dataclass(slots=True)
class _Engine:
    """One life of an engine's container."""

    wanted: Wanted
    """What it is being asked for, or was last."""
    seen: Sequence[AdapterState]
    """As far as it is."""
    heard: bool = False
    """Whether it has said anything, to this operator."""
    answer: _Answer | None = None
    failed: dict[str, AdapterState] = field(default_factory=dict)
    tries: Counter[Change] = field(default_factory=Counter)

    def states(self, pod: str) -> list[AdapterState]:
        """What failed stays so until it is loaded: that it is tried again is no news."""
        return [state if state.loaded else self.failed.get(state.name) or _placed(state, pod) for state in self.seen]

    def ended(self) -> None:
        """A round did, which need not have tried all of them."""
        for state in self.seen:
            if state.loaded:
                self.failed.pop(state.name, None)
            elif not state.under_way:
                self.failed[state.name] = state
        self.answer = _Answer(self.wanted, self.seen, time.monotonic())


class Adapters:
    """Remembers answers for a short while; a restarted container is asked at once."""

    def __init__(self, client: httpx.AsyncClient, keys: AdminKeys, errands: Errands) -> None:
        self._client = client
        self._keys = keys
        self._errands = errands
        self._engines: dict[Key, dict[tuple[str, int], _Engine]] = {}

    async def keep(self, work: Reconciliation, backend: Backend) -> None:
        """Have all ready replicas brought to what the resource says, and add to the status how far that is.

        Waits for no engine. Raises ApiError.
        """
        adapters = work.deployment.spec.adapters
        if not adapters and work.key not in self._engines:
            return
        want = wanted(work.deployment, backend)
        pods = [pod for pod in work.pods if pod.ready and pod.index == 0 and pod.address]
        if backend.loads_adapters == "start":
            pods = [pod for pod in pods if pod.revision == work.situation.revision]  # older ones were told of others
        known = self._engines.get(work.key, {})
        engines = {_life(pod): known.get(_life(pod)) or _Engine(want, outset(want)) for pod in pods}
        self._engines[work.key] = engines
        self._errands.stop(work.key, but=[life for life, engine in engines.items() if engine.wanted == want])
        key = await self._keys.of(work.key) if backend.takes_admin_key else None
        for pod in pods:
            self._bring(work.key, pod, engines[_life(pod)], backend, want, key)
        if adapters and engines and not any(engine.heard for engine in engines.values()) and _still_told(work):
            work.requeue_after(_TRIED_AGAIN)
        elif adapters:
            self._tell(work, [engines[_life(pod)].states(pod.name) for pod in pods])
        elif all(engine.answer and engine.answer.wanted == want for engine in engines.values()):
            self.forget(work.key)

    def forget(self, key: Key) -> None:
        self._engines.pop(key, None)
        self._errands.stop(key)

    def _bring(
        self, resource: Key, pod: EnginePod, engine: _Engine, backend: Backend, want: Wanted, key: str | None
    ) -> None:
        if engine.wanted != want:
            engine.wanted, engine.seen = want, outset(want)
            engine.failed.clear()
            engine.tries.clear()
        if engine.answer is not None and engine.answer.holds(want, time.monotonic()):
            return
        host = f"[{pod.address}]" if ":" in str(pod.address) else pod.address

        def seen(states: Sequence[AdapterState]) -> None:
            engine.seen, engine.heard = states, True

        async def ask() -> None:
            url = f"http://{host}:{HTTP_PORT}"
            seen(await sync_adapters(backend, url, want, self._client, key, seen, engine.tries))
            engine.ended()

        self._errands.begin(resource, _life(pod), ask)

    def _tell(self, work: Reconciliation, replicas: Sequence[Sequence[AdapterState]]) -> None:
        work.situation.extra["adapters"] = summarize(replicas)
        missing = [state for states in replicas for state in states if not state.loaded]
        failed = next((state for state in missing if not state.under_way), None)
        if failed is not None and work.situation.flaw is None:
            work.situation.flaw = Problem("AdapterNotLoaded", f"adapter {failed.name}: {failed.message}")
        work.requeue_after(_TRIED_AGAIN if missing else _TRUSTED_FOR)


def _still_told(work: Reconciliation) -> bool:
    """Leave in the status what it says of these adapters, as an operator does that is new and has asked nobody yet."""
    status = work.resource.get("status") or {}
    told = status.get("adapters") or []
    if {each["name"] for each in told} != {each.name for each in work.deployment.spec.adapters}:
        return False
    work.situation.extra["adapters"] = told
    for each in status.get("conditions") or []:
        if each["type"] == "Degraded" and each.get("reason") == "AdapterNotLoaded" and work.situation.flaw is None:
            work.situation.flaw = Problem("AdapterNotLoaded", each["message"])
    return True


def _life(pod: EnginePod) -> tuple[str, int]:
    return pod.uid, pod.restarts


def _placed(state: AdapterState, pod: str) -> AdapterState:
    return replace(state, message=f"{state.message} on pod {pod}") if state.under_way else state
