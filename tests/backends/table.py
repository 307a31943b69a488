"""The table of docs/backends.md: what was seen of each server, with its version and the day."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headwater import backends

DOCS = Path(__file__).parents[2] / "docs" / "backends.md"
SEEN = Path(__file__).parents[1] / "fixtures" / "contract" / "seen.json"
"""All columns, also of servers that were not there the last time."""
BEGIN, END = "<!-- seen: written by `make test-backends` -->\n", "<!-- end of seen -->\n"


@dataclass(frozen=True, slots=True)
class Column:
    backend: str
    version: str
    date: str
    rows: Mapping[str, str]
    source: str = ""
    """What its answers were written from, where nothing of it was seen."""


def known() -> dict[str, Column]:
    return {each["backend"]: Column(**each) for each in json.loads(SEEN.read_text())} if SEEN.exists() else {}


def write(columns: Sequence[Column]) -> None:
    """Take these in, and write the table anew."""
    seen = known() | {column.backend: column for column in columns}
    SEEN.write_text(json.dumps([asdict(seen[name]) for name in sorted(seen)], indent=1, ensure_ascii=False) + "\n")
    before, _, rest = DOCS.read_text().partition(BEGIN)
    DOCS.write_text(before + BEGIN + table(seen) + END + rest.partition(END)[2])


def table(seen: Mapping[str, Column]) -> str:
    """A table for each server would hide what differs; one line for each server and row is what can be read."""
    lines = ["| server | what | seen |", "|---|---|---|"]
    for name in backends.names():
        if name not in seen:
            lines.append(f"| `{name}` | all | not seen here yet |")
            continue
        column = seen[name]
        when = f"**not seen**: {column.source}; on {column.date}" if column.source else f"on {column.date}"
        lines.append(f"| `{name}` {column.version} | | {when} |")
        lines += [f"| | {row} | {told.replace('|', '/')} |" for row, told in column.rows.items()]
    return "\n".join(lines) + "\n"
