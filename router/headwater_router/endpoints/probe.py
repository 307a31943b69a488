"""Looks at each endpoint again and again: does it take requests, what does it serve, how busy is it?"""

import asyncio
import re
from collections.abc import Sequence

import httpx
import structlog

from headwater.backends.metrics import LoadReport, read_load
from headwater_router.endpoints.endpoint import Endpoint, ServedModel
from headwater_router.endpoints.fleet import Fleet

log = structlog.get_logger(__name__)

_PROCESS_START = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)


class Prober:
    """Writes what it finds to the fleet."""

    def __init__(self, fleet: Fleet, client: httpx.AsyncClient, interval: float) -> None:
        self._fleet = fleet
        self._client = client
        self._interval = interval

    async def run(self, endpoint: Endpoint) -> None:
        """Probe until cancelled."""
        while True:
            try:
                await self.probe(endpoint)
            except Exception:
                # One odd answer must not end the probing for good.
                log.exception("probe failed", endpoint=endpoint.name)
                self._fleet.mark_unready(endpoint, "its answer to the probe makes no sense")
            await asyncio.sleep(self._interval)

    async def probe(self, endpoint: Endpoint) -> None:
        try:
            answer = await self._client.get(endpoint.spec.url + endpoint.backend.ready_path)
            if answer.status_code != 200:
                self._fleet.mark_unready(endpoint, f"{endpoint.backend.ready_path} says {answer.status_code}")
                return
            await self._read_load(endpoint)
            models = endpoint.models if endpoint.ready and endpoint.models else await self._read_models(endpoint)
        except httpx.ConnectError as error:
            self._fleet.mark_dead(endpoint, str(error) or "connection refused")
            return
        except httpx.HTTPError as error:
            self._fleet.mark_unready(endpoint, str(error) or type(error).__name__)
            return
        self._fleet.mark_ready(endpoint, models)

    async def _read_load(self, endpoint: Endpoint) -> None:
        path = endpoint.backend.metrics_path
        if path is None:
            return
        answer = await self._client.get(endpoint.spec.url + path)
        if answer.status_code != 200:
            _store(endpoint, LoadReport(None, None, None, None, None))
            return
        if (start := _PROCESS_START.search(answer.text)) is not None:
            self._notice_restart(endpoint, float(start[1]))
        _store(endpoint, read_load(answer.text, endpoint.backend.metrics))

    def _notice_restart(self, endpoint: Endpoint, process_start: float) -> None:
        if endpoint.process_start not in (None, process_start):
            log.warning("endpoint restarted", endpoint=endpoint.name)
            self._fleet.begin_new_life(endpoint)
        endpoint.process_start = process_start

    async def _read_models(self, endpoint: Endpoint) -> Sequence[ServedModel]:
        answer = await self._client.get(endpoint.spec.url + "/v1/models")
        answer.raise_for_status()
        cards = [card for card in answer.json()["data"] if isinstance(card.get("id"), str)]
        # The first name of the same weights stands for all of them.
        bases: dict[str, str] = {}
        for card in cards:
            if not card.get("parent"):
                bases.setdefault(str(card.get("root") or card["id"]), card["id"])
        models = []
        for card in cards:
            if parent := card.get("parent"):
                models.append(ServedModel(card["id"], base=str(parent), adapter=card["id"]))
            else:
                models.append(ServedModel(card["id"], base=bases[str(card.get("root") or card["id"])], adapter=""))
        return models


def _store(endpoint: Endpoint, report: LoadReport) -> None:
    load = endpoint.target.load
    load.reported_running = report.running
    load.reported_waiting = report.waiting
    load.reported_cache_usage = report.cache_usage
    load.total_blocks = report.total_blocks
    load.block_size = report.block_size
