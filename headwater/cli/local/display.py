"""What `headwater up` shows: a live table on a terminal, a line for each change elsewhere, or JSON."""

import json
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table


class Shown(Protocol):
    """A process, as far as it is shown."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def fraction(self) -> float: ...

    @property
    def url(self) -> str: ...


class Display(Protocol):
    """Call `update` whenever something may have changed, and `say` for what is to stay."""

    def __enter__(self) -> "Display": ...

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None: ...

    def update(self, processes: Sequence[Shown]) -> None: ...

    def ready(self, url: str, models: Sequence[str]) -> None:
        """All processes are, for the first time."""
        ...


class Text:
    """For people: on a terminal what is told of processes moves, until all are ready.

    From then on the terminal may be somebody else's, too, as `make demo`'s, whose lines a moving table would wipe out.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live = Live(console=self.console, refresh_per_second=8) if self.console.is_terminal else None
        self._said: dict[str, str] = {}

    def __enter__(self) -> "Text":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, processes: Sequence[Shown]) -> None:
        if self._live is not None:
            self._live.update(_table(processes))
        for process in processes:
            line = f"{process.name}: {process.state}"
            if 0 < process.fraction < 1:
                # Quarters are enough of the progress for a log.
                line += f" {int(process.fraction * 4) * 25}%"
            if self._said.get(process.name) != line:
                self._said[process.name] = line
                if self._live is None:
                    self.say(line)

    def ready(self, url: str, models: Sequence[str]) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.say(f"ready: {url} serves {', '.join(models)}   (Ctrl-C stops)")


class JsonLines:
    """For programs: an object a line on stdout, `{"process"}`, `{"said"}` or `{"ready"}`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._told: dict[str, dict[str, object]] = {}

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def say(self, text: str) -> None:
        self._tell({"said": text})

    def update(self, processes: Sequence[Shown]) -> None:
        for process in processes:
            told: dict[str, object] = {
                "process": process.name, "state": process.state, "fraction": process.fraction, "url": process.url
            }  # fmt: skip
            if self._told.get(process.name) != told:
                self._told[process.name] = told
                self._tell(told)

    def ready(self, url: str, models: Sequence[str]) -> None:
        self._tell({"ready": url, "models": list(models)})

    def _tell(self, told: dict[str, object]) -> None:
        print(json.dumps(told), file=self._file, flush=True)


def _table(processes: Sequence[Shown]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("process", "state", "", "url"):
        table.add_column(column)
    for process in processes:
        bar = ProgressBar(completed=process.fraction * 100, width=24) if process.fraction < 1 else ""
        table.add_row(process.name, process.state, bar, process.url)
    return table
