"""`headwater stop`: ends what `headwater up` runs."""

import argparse
from typing import Final

from headwater.cli.flags import add_state
from headwater.cli.local.runs import Run, runs, stop
from headwater.cli.parser import CommandError

_PATIENCE: Final = 120.0
"""Seconds; what a run waits for the answers that it gives is less."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = "Stops what `headwater up` runs, once the running answers are done. Without a name, all of it."
    parser.add_argument("name", metavar="NAME", nargs="*", help="a run, called as its file without the ending")
    add_state(parser)


def run(arguments: argparse.Namespace) -> int:
    for each in _chosen(runs(arguments.state), arguments.name):
        if not stop(arguments.state, each, _PATIENCE):
            raise CommandError(f"{each.name} does not end; kill -9 {each.pid} ends it at once")
        print(f"{each.name} is stopped")
    return 0


def _chosen(there: list[Run], names: list[str]) -> list[Run]:
    """Raises CommandError."""
    up = {each.name: each for each in there}
    for name in names:
        if name not in up:
            also = f"; there are: {', '.join(up)}" if up else ", nor is anything else"
            raise CommandError(f"{name!r} is not up{also}")
    if not up:
        raise CommandError("nothing is up here; --state names another folder")
    return [up[name] for name in dict.fromkeys(names)] or there
