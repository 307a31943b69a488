"""Looks at each endpoint again and again: does it take requests, what does it serve, how busy is it?

Only three things take requests away from an endpoint: its own word, a host that says that nobody listens, and several
probes in a row without an answer. One late answer may be the network, or a busy moment; while bytes of other answers
come from there it lives, however late the probe is. Some servers answer only between two steps, of which a long prompt
makes one of many seconds: where a path that computes nothing answers meanwhile, they are busy, for ten minutes at most.
What its metrics page says, or does not say, is about load alone.
"""

import asyncio
import itertools
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog

from headwater import backends
from headwater.backends.metrics import LoadReport, read_load
from headwater.http.descriptors import Descriptors
from headwater.kubernetes import MOST_RANKS
from headwater_router.admission.ceiling import Report
from headwater_router.endpoints.asking import ask
from headwater_router.endpoints.endpoint import Endpoint, ServedModel
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.listing import read_models
from headwater_router.picker.base import Target
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectRefusedError,
    ConnectTimeoutError,
    OwnLimitError,
    UnreachableError,
    UpstreamError,
)
from headwater_router.upstream.pool import Pool

log = structlog.get_logger(__name__)

_MODELS_EVERY: Final = 5
"""Probes between two looks at what a ready endpoint serves: adapters come and go while it runs."""
_LONGEST_STEP: Final = 600.0
"""Seconds for which an endpoint that only says that it lives is busy. After that, it hangs. Requests that it does not
answer are charged to it much earlier."""
_MODELS_PATH: Final = "/v1/models"
_MOST_READY: Final = 64 * 1024
"""Bytes of an answer that are read; of each kind. More is not waited for."""
_MOST_MODELS: Final = 2**20
_MOST_METRICS: Final = 2**22
_MOST_AT_ONCE: Final = 2**16
"""Characters of a metrics page that are gone through without letting others go on."""
_PROCESS_START: Final = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)
_STATUS: Final = re.compile(rb'\s*\{\s*"status"\s*:\s*"([a-z_ ]{1,40})"')
"""Why our own engine is not ready: loading, draining, failed."""
_SILENCE: Final = (ConnectTimeoutError, AnswerTimeoutError, UnreachableError)
"""What a machine does that is gone, or stands still."""
_NO_REPORT: Final = LoadReport(None, None, None, None, None)

_Read = TypeVar("_Read")


class Prober:
    """Writes what it finds to the fleet."""

    def __init__(
        self, fleet: Fleet, descriptors: Descriptors, interval: float, timeout: float, failures: int = 3
    ) -> None:
        """`interval`, `timeout`: seconds, the latter for each of a probe's requests. `failures`: probes without an
        answer, in a row, that an endpoint is not ready after.
        """
        self._fleet = fleet
        self._descriptors = descriptors
        self._interval = interval
        self._timeout = timeout
        self._failures = failures

    async def run(self, endpoint: Endpoint) -> None:
        """Probe until cancelled."""
        pool = Pool(endpoint.host, endpoint.port, self._timeout, self._descriptors, endpoint.tls)
        loading: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for turn in itertools.count():
                    await self.look(endpoint, pool, models_too=turn % _MODELS_EVERY == 0)
                    # Beside the next probes, which a page that never ends must not hold up.
                    if endpoint.ready and (loading is None or loading.done()):
                        loading = group.create_task(self._read_load(endpoint, pool))
                    await asyncio.sleep(self._interval)
        finally:
            pool.close()

    async def look(self, endpoint: Endpoint, pool: Pool, *, models_too: bool) -> None:
        """One probe. `models_too`: also what is known already of what it serves is asked anew."""
        begun = asyncio.get_running_loop().time()
        endpoint.key.refresh()
        path = _path_to_ask(endpoint, begun, thoroughly=models_too)
        try:
            status, body = await self._get(endpoint, pool, path, _MOST_READY)
            if status != 200 and path != endpoint.backend.ready_path:
                # Older versions may have no such path: only what is asked for readiness says that there is none.
                path = endpoint.backend.ready_path
                status, body = await self._get(endpoint, pool, path, _MOST_READY)
            if status != 200:
                self._fleet.mark_unready(endpoint, _refusal(endpoint, path, status, body))
                return
            models: Sequence[ServedModel] | None = endpoint.models
            if models_too or not (endpoint.ready and models):
                models = await self._read_models(endpoint, pool)
        except OwnLimitError:
            return  # It says nothing of the endpoint.
        except ConnectRefusedError:
            self._fleet.mark_dead(endpoint, f"nobody listens at {endpoint.host}:{endpoint.port}")
        except UpstreamError as error:
            if not isinstance(error, AnswerTimeoutError) or not await self._lives(endpoint, pool):
                self._missed(endpoint, error, begun)
            elif begun - endpoint.said_ready <= _LONGEST_STEP:
                endpoint.missed = 0
                self._fleet.mark_late(endpoint, self._reason(endpoint, error))
            else:
                self._fleet.mark_unready(endpoint, self._reason(endpoint, error))
        except Exception:
            # One odd answer must not end the probing for good.
            log.exception("probe failed", endpoint=endpoint.name)
            self._fleet.mark_unready(endpoint, "its answer to the probe makes no sense")
        else:
            if models is not None:
                if path == endpoint.backend.ready_path:
                    endpoint.said_ready = begun
                self._fleet.mark_ready(endpoint, models)

    async def _lives(self, endpoint: Endpoint, pool: Pool) -> bool:
        """Whether one that does not say in time that it is ready says on its other path that it lives."""
        path = endpoint.backend.alive_path
        if path is None:
            return False
        try:
            status, _ = await self._get(endpoint, pool, path, _MOST_READY)
        except UpstreamError:
            return False
        return status == 200

    def _missed(self, endpoint: Endpoint, error: UpstreamError, begun: float) -> None:
        if endpoint.last_heard() >= begun:
            endpoint.missed = 0
            return
        endpoint.missed += 1
        reason = self._reason(endpoint, error)
        if endpoint.missed % self._failures:
            self._fleet.mark_late(endpoint, reason)
        elif isinstance(error, _SILENCE):
            self._fleet.mark_unreachable(endpoint, reason)
        else:
            self._fleet.mark_unready(endpoint, reason)

    def _reason(self, endpoint: Endpoint, error: UpstreamError) -> str:
        match error:
            case ConnectTimeoutError():
                return f"no connection to {endpoint.host}:{endpoint.port} within {self._timeout:g} s"
            case UnreachableError():
                return f"{error} ({endpoint.host})"
            case _:
                return str(error)

    async def _get(self, endpoint: Endpoint, pool: Pool, path: str, most: int) -> tuple[int, bytes]:
        return await ask(endpoint, pool, path, self._timeout, most)

    async def _read_models(self, endpoint: Endpoint, pool: Pool) -> Sequence[ServedModel] | None:
        """None: it does not say so, and is not ready for that. Once it has said so, it need not say so again."""
        try:
            status, body = await self._get(endpoint, pool, _MODELS_PATH, _MOST_MODELS)
            if status == 200:
                return read_models(body)
        except (UpstreamError, ValueError) as error:
            if endpoint.models:
                return endpoint.models
            if isinstance(error, UpstreamError):
                raise
            self._fleet.mark_unready(endpoint, f"its {_MODELS_PATH} makes no sense: {error}")
            return None
        if status == 404 and endpoint.spec.deployment:
            return []  # Not every server has it; the resource says what it serves.
        if endpoint.models:
            return endpoint.models
        self._fleet.mark_unready(endpoint, _refusal(endpoint, _MODELS_PATH, status, body))
        return None

    async def _read_load(self, endpoint: Endpoint, pool: Pool) -> None:
        path = endpoint.backend.metrics_path
        if path is None:
            return
        report = _NO_REPORT
        try:
            status, body = await self._get(endpoint, pool, path, _MOST_METRICS)
            if status == 200:
                text = body.decode(errors="replace")
                self._notice_restart(endpoint, await _go_through(text, _process_start))
                report = await _go_through(text, partial(read_load, metrics=endpoint.backend.metrics))
        except Exception as error:
            # Whatever stands there: a page that cannot be read is no report, and no more than that.
            log.debug("load not read", endpoint=endpoint.name, reason=repr(error)[:200])
        self._store(endpoint, report)
        self._fleet.on_report(endpoint)

    def _store(self, endpoint: Endpoint, report: LoadReport) -> None:
        if report != _NO_REPORT:  # A page that tells nothing does not say that there is one engine.
            told_apart = len(report.by_rank) if 1 < len(report.by_rank) <= MOST_RANKS else 1
            self._fleet.found_ranks(endpoint, min(report.ranks, MOST_RANKS), told_apart)
        targets, parts = endpoint.targets, report.by_rank
        for target, part in zip(targets, parts if len(parts) == len(targets) else [report] * len(targets), strict=True):
            _store_load(target, part)

    def _notice_restart(self, endpoint: Endpoint, start: float | None) -> None:
        if start is None:
            return
        if endpoint.process_start not in (None, start):
            log.warning("endpoint restarted", endpoint=endpoint.name)
            self._fleet.begin_new_life(endpoint)
        endpoint.process_start = start


async def _go_through(page: str, read: Callable[[str], _Read]) -> _Read:
    """A long page aside, on a thread. Raises what `read` raises."""
    return read(page) if len(page) <= _MOST_AT_ONCE else await asyncio.to_thread(read, page)


def _process_start(page: str) -> float | None:
    """Seconds since the epoch; None where it does not say. Raises ValueError."""
    found = _PROCESS_START.search(page)
    return start if found is not None and math.isfinite(start := float(found[1])) else None


def _path_to_ask(endpoint: Endpoint, now: float, *, thoroughly: bool) -> str:
    backend = endpoint.backend
    known = endpoint.ready and now - endpoint.said_ready <= _LONGEST_STEP and not thoroughly
    if known and backend.ready_path_computes and backend.alive_path is not None:
        return backend.alive_path
    return backend.ready_path


def _refusal(endpoint: Endpoint, path: str, status: int, body: bytes) -> str:
    """What a status that is not 200 says to people, as far as it can be guessed."""
    if status in (401, 403):
        key = f"it does not take the key of {endpoint.key.source}" if endpoint.key.source else _KEY_WANTED
        return f"{status} on {path}: {key}"
    if status == 404 and path == endpoint.backend.ready_path:
        others = [name for name in backends.names() if backends.get(name).ready_path != path]
        likely = "vllm" if "vllm" in others else others[0]
        return f"404 on {path}: is it backend={likely}? These have another path: {', '.join(others)}"
    word = _STATUS.match(body)
    return f"{status} on {path}{f': {word[1].decode()}' if word else ''}"


_KEY_WANTED: Final = "it needs a key: api_key_env= or api_key_file="


def _store_load(target: Target, report: LoadReport) -> None:
    load = target.load
    load.total_blocks = report.total_blocks
    load.block_size = report.block_size
    load.report(
        Report(
            report.running,
            report.waiting,
            report.cache_usage,
            report.most_running,
            report.adapters,
            report.token_times,
        )
    )
