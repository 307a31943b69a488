"""One list of a cluster's objects, kept true by a watch, whatever becomes of the connection.

list ──> watch from its version ──> the stream ends, or breaks, or says nothing for long ──> watch from the last version
 ^                                                                                             │
 └──────────────────────── 410 Gone: that version is too old ──────────────────────────────────┘

Between two tries there is a pause that doubles, with chance in it, so that the routers of a cluster do not all come at
once when its API server is back. What was known stays in force until a new list has come whole.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import aiohttp
import msgspec
import structlog

from headwater.backoff import Backoff
from headwater_router.endpoints.deployments import Object
from headwater_router.endpoints.table import ACCEPT, PodTable

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 0.5
"""Seconds, half of them to all of them at random."""
LONGEST_PAUSE: Final = 30.0
_PAGE: Final = 500
_CONNECT_TIMEOUT: Final = 10.0
_LIST_TIMEOUT: Final = 60.0
_SILENCE: Final = 90.0
"""Seconds without a word after which the connection counts as lost: a bookmark comes about every minute."""
_WATCH_SECONDS: Final = (240, 420)
"""How long a watch lasts before the server ends it, by chance between these."""


class Client(Protocol):
    """The API server: opens a GET, whatever it takes to be let in."""

    async def get(
        self, path: str, query: Mapping[str, str], patience: aiohttp.ClientTimeout, accept: str
    ) -> aiohttp.ClientResponse: ...


class Sink(Protocol):
    """Whoever wants to know the objects."""

    def listed(self, kind: str, namespace: str | None, objects: list[Object]) -> None: ...

    def changed(self, kind: str, each: Object) -> None: ...

    def removed(self, kind: str, each: Object) -> None: ...


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status = status


@dataclass(slots=True, eq=False)
class Watch:
    """Use `run` as a task. `kind` is the plural of what is watched; `namespace` None is all of them."""

    client: Client
    sink: Sink
    kind: str
    group: str
    """Path of the API group and version, such as `/api/v1`."""
    namespace: str | None
    selector: str
    on_error: Callable[[str], None]
    """Called with the kind for each failed try."""
    table: PodTable | None = None
    """Reads what is watched where that comes as a table, and not as objects."""
    first_pause: float = FIRST_PAUSE
    listed: bool = False
    """Whether a whole list has come."""
    last_word: float | None = None
    """When the API server last said anything, in monotonic seconds."""
    _version: str = ""
    _failures: int = 0
    _decode: Callable[[bytes], Any] = field(default=msgspec.json.Decoder().decode)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                told = await self._follow()
            except Exception as error:
                # Whatever it was, the others and this one go on with what is known.
                self._failed(error)
            else:
                if told:
                    continue
            # Also after a watch that ended without a word: a server that only hangs up must not be asked in a circle.
            await asyncio.sleep(self._pause())

    @property
    def path(self) -> str:
        place = f"/namespaces/{self.namespace}" if self.namespace is not None else ""
        return f"{self.group}{place}/{self.kind}"

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if isinstance(error, ApiError) and error.status == 410:
            self._version = ""
            log.info("watch begins anew: its version is too old", kind=self.kind, namespace=self.namespace)
            return
        self.on_error(self.kind)
        reason = str(error) or type(error).__name__
        log.warning("API server cannot be followed", kind=self.kind, namespace=self.namespace, reason=reason)

    def _pause(self) -> float:
        return Backoff(self.first_pause, LONGEST_PAUSE).jittered(self._failures)

    def _heard(self) -> None:
        self.last_word = time.monotonic()
        self._failures = 0

    async def _list(self) -> None:
        patience = aiohttp.ClientTimeout(total=_LIST_TIMEOUT, connect=_CONNECT_TIMEOUT)
        query = {"limit": str(_PAGE), "labelSelector": self.selector}
        objects: list[Object] = []
        while True:
            async with await self.client.get(self.path, query, patience, self._accept) as response:
                page = await self._content(response)
            objects += page["items"] if self.table is None else self.table.read(page)
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                break
        self.sink.listed(self.kind, self.namespace, objects)
        self.listed = True
        self._version = page["metadata"]["resourceVersion"]
        self._heard()

    async def _follow(self) -> bool:
        """Watch until the server ends it. Returns whether it said anything."""
        patience = aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT, sock_read=_SILENCE)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(random.randint(*_WATCH_SECONDS)),
            "labelSelector": self.selector,
        }
        told = False
        async with await self.client.get(self.path, query, patience, self._accept) as response:
            if response.status != 200:
                await self._content(response)
            self.last_word = time.monotonic()
            try:
                async for line in response.content:
                    self._take(self._decode(line))
                    self._heard()
                    told = True
            except aiohttp.SocketTimeoutError:
                log.info("watch was silent", kind=self.kind, namespace=self.namespace)
        return told

    def _take(self, event: Any) -> None:
        """Raises ApiError where the event is one."""
        each = event["object"]
        match event["type"]:
            case "ERROR":
                raise ApiError(each.get("code", 0), each.get("message", "no message"))
            case "ADDED" | "MODIFIED":
                for told in self._told(each):
                    self.sink.changed(self.kind, told)
            case "DELETED":
                for told in self._told(each):
                    self.sink.removed(self.kind, told)
            case "BOOKMARK" if self.table is not None:
                self.table.learn(each)  # It may be the first event.
        self._version = each["metadata"]["resourceVersion"]

    def _told(self, each: Any) -> Sequence[Object]:
        return [each] if self.table is None else self.table.read(each)

    @property
    def _accept(self) -> str:
        return "application/json" if self.table is None else ACCEPT

    async def _content(self, response: aiohttp.ClientResponse) -> Any:
        """Raises ApiError for a status other than 200."""
        text = await response.read()
        if response.status == 200:
            return self._decode(text)
        try:
            message = self._decode(text)["message"]
        except (msgspec.DecodeError, KeyError, TypeError):
            message = text[:200].decode(errors="replace")
        raise ApiError(response.status, message)
