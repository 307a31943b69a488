"""When the engines of a deployment are asked for their adapters: as they get ready, and again every now and then."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from headwater.backends.base import Backend
from headwater.kubernetes import HTTP_PORT
from headwater_operator.cluster.admin_keys import AdminKeys
from headwater_operator.cluster.kinds import Key
from headwater_operator.diagnose.pods import EnginePod, Problem
from headwater_operator.reconcile.adapter_sync import AdapterState, Wanted, summarize, sync_adapters, wanted
from headwater_operator.reconcile.reconciliation import Reconciliation

_TRUSTED_FOR: Final = 60.0
"""Seconds for which an engine that has all its adapters is not asked again."""
_TRIED_AGAIN: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Answer:
    wanted: Wanted
    states: list[AdapterState]
    at: float

    def holds(self, wanted: Wanted, now: float) -> bool:
        complete = all(state.loaded for state in self.states)
        return self.wanted == wanted and now - self.at < (_TRUSTED_FOR if complete else _TRIED_AGAIN)


class Adapters:
    """Remembers answers for a short while; a restarted container is asked at once."""

    def __init__(self, client: httpx.AsyncClient, keys: AdminKeys) -> None:
        self._client = client
        self._keys = keys
        self._answers: dict[Key, dict[tuple[str, int], _Answer]] = {}

    async def keep(self, work: Reconciliation, backend: Backend) -> None:
        """Bring the adapters of all ready replicas to what the resource says, and add to the status what they have.

        Raises ApiError.
        """
        if not work.deployment.spec.adapters and work.key not in self._answers:
            return
        want = wanted(work.deployment, backend)
        pods = [pod for pod in work.pods if pod.ready and pod.index == 0 and pod.address]
        if backend.loads_adapters == "start":
            pods = [pod for pod in pods if pod.revision == work.situation.revision]  # older ones were told of others
        known = self._answers.get(work.key, {})
        key = await self._keys.of(work.key) if backend.takes_admin_key else None
        answers = await asyncio.gather(*(self._ask(pod, backend, key, want, known) for pod in pods))
        self._answers[work.key] = {_life(pod): answer for pod, answer in zip(pods, answers, strict=True)}
        if not work.deployment.spec.adapters:
            del self._answers[work.key]
            return
        states = [answer.states for answer in answers]
        work.situation.extra["adapters"] = summarize(states)
        missing = _missing(states)
        if missing is not None and work.situation.flaw is None:
            work.situation.flaw = Problem("AdapterNotLoaded", f"adapter {missing.name}: {missing.message}")
        work.requeue_after(_TRUSTED_FOR if missing is None else _TRIED_AGAIN)

    def forget(self, key: Key) -> None:
        self._answers.pop(key, None)

    async def _ask(
        self, pod: EnginePod, backend: Backend, key: str | None, want: Wanted, known: dict[tuple[str, int], _Answer]
    ) -> _Answer:
        now = time.monotonic()
        answer = known.get(_life(pod))
        if answer is not None and answer.holds(want, now):
            return answer
        host = f"[{pod.address}]" if ":" in str(pod.address) else pod.address
        states = await sync_adapters(backend, f"http://{host}:{HTTP_PORT}", want, self._client, key)
        return _Answer(want, states, now)


def _life(pod: EnginePod) -> tuple[str, int]:
    return pod.uid, pod.restarts


def _missing(replicas: Sequence[Sequence[AdapterState]]) -> AdapterState | None:
    return next((state for states in replicas for state in states if not state.loaded), None)
