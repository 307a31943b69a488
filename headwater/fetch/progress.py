"""How far a fetch is: a bar on a terminal, a log line now and then elsewhere, and JSON for whoever asks at a port."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Final

import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

log = structlog.get_logger(__name__)

_LINE_EVERY: Final = 15.0
_LOOK_EVERY: Final = 0.5
"""Seconds."""
_PATIENCE: Final = 5.0


class Watch:
    """Counts bytes until there are `total`. Those that an earlier run left are no part of the rate."""

    def __init__(self, total: int, console: Console | None = None, port: int | None = None) -> None:
        """`port`: where it is told over HTTP, to anybody, on all addresses; None: nowhere."""
        self._port = port
        self._total = total
        self._there = 0
        self._left_by_others = 0
        self._begun = time.monotonic()
        self._console = console or Console(stderr=True)

    def found(self, size: int) -> None:
        self._there += size
        self._left_by_others += size

    def came(self, size: int) -> None:
        """Negative where it was not to be used."""
        self._there += size

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        log.info("fetching", bytes=self._total)
        task = asyncio.create_task(self._bar() if self._console.is_terminal else self._lines())
        try:
            async with self._told():
                yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        if self._port is None:
            yield
            return
        try:
            server = await asyncio.start_server(self._tell, port=self._port)
        except OSError as error:  # it is a courtesy
            log.warning("nobody can be told how far it is", port=self._port, reason=error.strerror)
            yield
            return
        async with server:
            yield

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The same whatever is asked, so that nothing of it need be read but its end."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await reader.readuntil(b"\r\n\r\n")
                body = json.dumps(self.figures()).encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
                writer.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(_LINE_EVERY)
            log.info("fetching", **self.figures())

    def figures(self) -> dict[str, int | None]:
        rate = max(self._there - self._left_by_others, 0) / max(time.monotonic() - self._begun, 1e-3)
        left = max(self._total - self._there, 0)
        return {
            "bytes": self._total,
            "there": self._there,
            "percent": round(100 * self._there / max(self._total, 1)),
            "bytes_per_second": round(rate),
            "seconds_left": round(left / rate) if rate else None,
        }

    async def _bar(self) -> None:
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("fetch", total=self._total)
            try:
                while True:
                    bar.update(task, completed=self._there)
                    await asyncio.sleep(_LOOK_EVERY)
            finally:
                bar.update(task, completed=self._there)
