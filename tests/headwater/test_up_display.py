"""What `headwater up` shows on a terminal."""

import io
from dataclasses import dataclass

import pyte
from rich.console import Console

from headwater.cli.local.display import Text


@dataclass
class Shown:
    name: str
    state: str
    fraction: float = 1.0
    url: str = ""


def test_a_table_moves_until_all_are_ready_and_lines_of_others_stay() -> None:
    """The terminal is that of whoever started it, too: `make demo` has a conversation on it."""
    screen = pyte.Screen(80, 24)
    terminal = io.StringIO()

    def drawn() -> list[str]:
        pyte.Stream(screen).feed(terminal.getvalue().replace("\n", "\r\n"))
        terminal.truncate(0)
        terminal.seek(0)
        return [line.rstrip() for line in screen.display if line.strip()]

    with Text(Console(file=terminal, force_terminal=True, width=80)) as display:
        display.update([Shown("a-0", "loading", 0.5), Shown("router", "ready")])
        display.update([Shown("a-0", "ready"), Shown("router", "ready")])
        display.ready("http://h/v1", ["a"])
        assert drawn()[1:] == ["a-0      ready", "router   ready", "ready: http://h/v1 serves a   (Ctrl-C stops)"]
        terminal.write("somebody else's\n")
        display.update([Shown("a-0", "ready"), Shown("router", "ready")])
        display.update([Shown("a-0", "stopping"), Shown("router", "ready")])
        assert drawn()[4:] == ["somebody else's", "a-0: stopping"]
