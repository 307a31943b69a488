"""How far the Job is that fetches weights: its pod is asked, as a gateway is for its load.

A pod's log would say it too, but the right to read one is the right to read all of them.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Final
from weakref import WeakValueDictionary

import httpx
import msgspec

from headwater.kubernetes import FETCH_PORT
from headwater_operator.asking import EndlessError, ask
from headwater_operator.cluster.kinds import Key, Object, uid_of
from headwater_operator.reconcile.errands import Errands

ASKED_AGAIN: Final = 15.0
"""Seconds between two questions, and so between two states of what people are told."""
_TIMEOUT: Final = 1.0
_LARGEST: Final = 4096
"""Bytes of an answer."""
_REMEMBERED: Final = 1000


_Large = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Figures(msgspec.Struct, frozen=True):
    """As `headwater fetch` tells them."""

    bytes: _Large
    percent: Annotated[int, msgspec.Meta(ge=0, le=100)]
    bytes_per_second: _Large
    seconds_left: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None

    def __str__(self) -> str:
        text = f"{self.percent}% of {self.bytes / 2**30:.1f} GiB, {self.bytes_per_second / 2**20:.0f} MiB/s"
        return text if self.seconds_left is None else f"{text}, {_shown(self.seconds_left)} left"

    def shown(self) -> Mapping[str, int]:
        """For `status.weights`."""
        shown = {"percent": self.percent, "bytes": self.bytes, "secondsLeft": self.seconds_left}
        return {name: value for name, value in shown.items() if value is not None}


class FetchProgress:
    def __init__(self, client: httpx.AsyncClient, errands: Errands) -> None:
        self._client = client
        self._errands = errands
        self._told: dict[str, tuple[float, Figures | None]] = {}
        """By the pod's UID, what it said last and when: several ModelDeployments may wait for it."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By the pod's UID: one of those asks, and the others hear of it."""

    def of(self, resource: Key, pods: Sequence[Object]) -> Figures | None:
        """What the one that runs said last; None where there is none, or where it said nothing.

        Nobody waits for it here: it is asked as an errand of `resource`, which is reconciled again afterwards.
        """
        running = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
        address = running[0]["status"].get("podIP") if running else None
        if address is None:
            return None
        uid = uid_of(running[0])
        if not self._is_new(uid):
            self._errands.begin(resource, uid, partial(self._learn, uid, address))
        return self._told[uid][1] if uid in self._told else None

    def _is_new(self, uid: str) -> bool:
        return uid in self._told and time.monotonic() - self._told[uid][0] < ASKED_AGAIN

    async def _learn(self, uid: str, address: str) -> None:
        async with self._turns.setdefault(uid, asyncio.Lock()):
            if self._is_new(uid):
                return
            figures = await self._ask(address)
            self._told.pop(uid, None)
            self._told[uid] = time.monotonic(), figures
            if len(self._told) > _REMEMBERED:
                del self._told[next(iter(self._told))]

    async def _ask(self, address: str) -> Figures | None:
        host = f"[{address}]" if ":" in address else address
        try:
            told = await ask(self._client, f"http://{host}:{FETCH_PORT}/", seconds=_TIMEOUT, most=_LARGEST)
            return msgspec.json.decode(told.body, type=Figures) if told.is_success else None
        except (TimeoutError, EndlessError, httpx.HTTPError, msgspec.MsgspecError, UnicodeDecodeError):
            return None  # it lists the files, or counts what is there, or its image is older than the question


def _shown(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds / 60:.0f} min"
