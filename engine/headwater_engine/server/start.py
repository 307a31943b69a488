"""What `headwater serve` says while it starts: one line that moves on a terminal, log lines elsewhere."""

import json
import sys
from collections.abc import Sequence
from typing import Protocol

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from headwater_engine.core.messages import Loading, Ready

log = structlog.get_logger(__name__)


class Start(Protocol):
    """Is told how far the start is."""

    def loading(self, now: Loading) -> None: ...

    def ready(self, url: str, models: Sequence[str], engine: Ready) -> None: ...

    def close(self) -> None:
        """It ends, ready or not; may be called twice."""
        ...


def shown_start() -> Start:
    """What suits where stderr goes."""
    return OnTerminal(Console(stderr=True)) if sys.stderr.isatty() else Logged()


class Logged:
    """A line for each phase, and for each tenth of one."""

    def __init__(self) -> None:
        self._last = Loading(0.0, "")

    def loading(self, now: Loading) -> None:
        if now.phase != self._last.phase or now.fraction - self._last.fraction >= 0.1:
            self._last = now
            log.info("loading", phase=now.phase, fraction=round(now.fraction, 2))

    def ready(self, url: str, models: Sequence[str], engine: Ready) -> None:
        log.info("ready", url=url, models=models, kernels=engine.kernels)

    def close(self) -> None:
        """Nothing is open."""


class OnTerminal:
    """A bar while it loads; then who it is, what it computes with, and what to try."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("starting", total=1.0)
        self._progress.start()

    def loading(self, now: Loading) -> None:
        self._progress.update(self._task, description=f"loading {now.phase}", completed=now.fraction)

    def ready(self, url: str, models: Sequence[str], engine: Ready) -> None:
        self.close()
        room = engine.num_blocks * engine.block_size
        for name, value in (
            ("model", " or ".join(models)),
            ("url", f"{url}/v1"),
            ("kernels", engine.kernels),
            ("KV cache", f"{room:,} tokens; {engine.max_model_len:,} in one request"),
        ):
            self._say(f"{name:10}{value}")
        body = {"model": models[0], "messages": [{"role": "user", "content": "What is a river?"}]}
        self._say(
            f"\ncurl {url}/v1/chat/completions -H 'content-type: application/json' \\\n  -d '{json.dumps(body)}'\n\n"
            "Ctrl-C stops it once the running answers are done."
        )

    def close(self) -> None:
        self._progress.stop()

    def _say(self, text: str) -> None:
        # A line that is to be copied is not broken.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
