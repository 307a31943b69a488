"""`headwater logs`: what the processes of `headwater up` wrote."""

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from headwater.cli.flags import add_state
from headwater.cli.parser import CommandError

_LOOK_EVERY: Final = 0.25
"""Seconds between two looks at files that grow."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints what processes of `headwater up` wrote, also those that ended. Without a name, that of all."
    )
    parser.add_argument("name", metavar="NAME", nargs="*", help="a process such as smollm2-0 or router, or a run")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what they write from now on")
    add_state(parser)


def run(arguments: argparse.Namespace) -> int:
    files = _files(arguments.state, arguments.name)
    seen = dict.fromkeys(files, 0)
    while True:
        for file in files:
            seen[file] = _print_from(file, seen[file], named=len(files) > 1)
        sys.stdout.flush()
        if not arguments.follow:
            return 0
        time.sleep(_LOOK_EVERY)


def _files(state: Path, names: list[str]) -> list[Path]:
    """Raises CommandError."""
    there = sorted(state.glob("*/*.log"))
    if not there:
        raise CommandError(f"there are no logs in {state}; --state names another folder")
    for name in names:
        if not any(name in (file.stem, file.parent.name) for file in there):
            known = dict.fromkeys(file.stem for file in there)
            raise CommandError(f"there is no log of {name!r}; there are: {', '.join(known)}")
    return [file for file in there if not names or {file.stem, file.parent.name} & set(names)]


def _print_from(file: Path, at: int, *, named: bool) -> int:
    """Whole lines only, those behind byte `at`. Returns where the next look begins."""
    with file.open("rb") as log:
        if log.seek(0, 2) < at:  # It was begun anew.
            at = 0
        log.seek(at)
        lines = log.read()
    lines = lines[: lines.rfind(b"\n") + 1]
    for line in lines.decode(errors="replace").splitlines():
        print(f"{file.stem}: {line}" if named else line)
    return at + len(lines)
