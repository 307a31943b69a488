"""Tables as commands print them: for people on a terminal, and for programs and files."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

_NO_EDGE = 100_000
"""Columns: a file has none, and a name that is cut into pieces cannot be looked for."""


def make_table(columns: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """On a terminal what is too long for a column goes on below; elsewhere a row is a line."""
    console = Console()
    if not console.is_terminal:
        console.width = _NO_EDGE
    console.print(table)
