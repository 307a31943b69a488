"""Looks at each endpoint again and again: does it take requests, what does it serve, how busy is it?"""

import asyncio
import itertools
import re
from collections.abc import Sequence

import msgspec
import structlog

from headwater.backends.metrics import LoadReport, read_load
from headwater_router.descriptors import Descriptors
from headwater_router.endpoints.endpoint import Endpoint, ServedModel
from headwater_router.endpoints.fleet import Fleet
from headwater_router.upstream.errors import AnswerTimeoutError, ConnectRefusedError, UpstreamError
from headwater_router.upstream.pool import Pool

log = structlog.get_logger(__name__)

_MODELS_EVERY = 5
"""Probes between two looks at what a ready endpoint serves: adapters come and go while it runs."""
_PROCESS_START = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)


class Prober:
    """Writes what it finds to the fleet."""

    def __init__(self, fleet: Fleet, descriptors: Descriptors, interval: float, timeout: float) -> None:
        """`interval`, `timeout`: seconds, the latter for each of a probe's requests."""
        self._fleet = fleet
        self._descriptors = descriptors
        self._interval = interval
        self._timeout = timeout

    async def run(self, endpoint: Endpoint) -> None:
        """Probe until cancelled."""
        pool = Pool(endpoint.host, endpoint.port, self._timeout, self._descriptors)
        try:
            for turn in itertools.count():
                try:
                    await self._probe(endpoint, pool, look_anew=turn % _MODELS_EVERY == 0)
                except Exception:
                    # One odd answer must not end the probing for good.
                    log.exception("probe failed", endpoint=endpoint.name)
                    self._fleet.mark_unready(endpoint, "its answer to the probe makes no sense")
                await asyncio.sleep(self._interval)
        finally:
            pool.close()

    async def _probe(self, endpoint: Endpoint, pool: Pool, *, look_anew: bool) -> None:
        try:
            status, _ = await self._get(endpoint, pool, endpoint.backend.ready_path)
            if status != 200:
                self._fleet.mark_unready(endpoint, f"{endpoint.backend.ready_path} says {status}")
                return
            await self._read_load(endpoint, pool)
            models = endpoint.models
            if look_anew or not (endpoint.ready and models):
                models = await self._read_models(endpoint, pool)
        except ConnectRefusedError as error:
            self._fleet.mark_dead(endpoint, str(error))
            return
        except UpstreamError as error:
            self._fleet.mark_unready(endpoint, str(error))
            return
        self._fleet.mark_ready(endpoint, models)

    async def _get(self, endpoint: Endpoint, pool: Pool, path: str) -> tuple[int, bytes]:
        """Status and body. Raises UpstreamError."""
        request = f"GET {path} HTTP/1.1\r\nhost: {endpoint.spec.url[7:]}\r\n\r\n".encode()
        try:
            async with asyncio.timeout(self._timeout):
                deadline = asyncio.get_running_loop().time() + self._timeout
                connection = await pool.ask(request, b"", deadline, self._timeout)
                try:
                    pieces = [await connection.read()]
                    while pieces[-1]:
                        pieces.append(await connection.read())
                finally:
                    connection.release()
        except TimeoutError:
            raise AnswerTimeoutError(f"{path} was not answered in time") from None
        return connection.status, b"".join(pieces)

    async def _read_load(self, endpoint: Endpoint, pool: Pool) -> None:
        path = endpoint.backend.metrics_path
        if path is None:
            return
        status, body = await self._get(endpoint, pool, path)
        if status != 200:
            _store(endpoint, LoadReport(None, None, None, None, None))
            return
        text = body.decode(errors="replace")
        if (start := _PROCESS_START.search(text)) is not None:
            self._notice_restart(endpoint, float(start[1]))
        _store(endpoint, read_load(text, endpoint.backend.metrics))

    def _notice_restart(self, endpoint: Endpoint, process_start: float) -> None:
        if endpoint.process_start not in (None, process_start):
            log.warning("endpoint restarted", endpoint=endpoint.name)
            self._fleet.begin_new_life(endpoint)
        endpoint.process_start = process_start

    async def _read_models(self, endpoint: Endpoint, pool: Pool) -> Sequence[ServedModel]:
        status, body = await self._get(endpoint, pool, "/v1/models")
        if status == 404 and endpoint.spec.deployment:
            return []  # Not every server has it; the resource says what it serves.
        if status != 200 and endpoint.ready and endpoint.models:
            return endpoint.models  # Whether it takes requests is said elsewhere.
        if status != 200:
            raise UpstreamError(f"/v1/models says {status}")
        cards = [card for card in msgspec.json.decode(body)["data"] if isinstance(card.get("id"), str)]
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
