"""`headwater pick`: which backend for a workload. What it says is made in `headwater.pick`."""

import argparse

from headwater.cli.parser import CommandError, UsageError
from headwater.pick import ImpossibleError, WorkloadError, command


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Ranks the backends for a workload, with the reason for each place, and says how many GPUs it takes. "
        "docs/choosing.md has the rules and the arithmetic."
    )
    command.add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        return command.run(arguments)
    except WorkloadError as error:
        raise UsageError(str(error)) from None
    except ImpossibleError as error:
        raise CommandError(str(error)) from None
