"""How far a fetch is: a bar on a terminal, a log line now and then elsewhere.

Whatever fetches, what has come is what lies in the folder; so it is looked at, not counted.
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import Final

import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from headwater.fetch.files import bytes_in

log = structlog.get_logger(__name__)

_LINE_EVERY: Final = 15.0
_LOOK_EVERY: Final = 0.5


class Watch:
    """A context in which a folder grows to `total` bytes."""

    def __init__(self, folder: Path, total: int, console: Console | None = None) -> None:
        self._folder = folder
        self._total = total
        console = console or Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        log.info("fetching", bytes=self._total, there=bytes_in(self._folder))
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("fetch", total=self._total)
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._bar is not None:
            if kind is None:
                self._bar.update(self._bar.task_ids[0], completed=self._total)
            self._bar.stop()

    def _watch(self) -> None:
        while not self._ended.wait(_LINE_EVERY if self._bar is None else _LOOK_EVERY):
            come = min(bytes_in(self._folder), self._total)
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=come)
            else:
                log.info("fetching", bytes=self._total, there=come, percent=round(100 * come / max(self._total, 1)))


def _bar(console: Console) -> Progress:
    return Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console)
