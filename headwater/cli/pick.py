"""`headwater pick`: which backend for a workload. What it says is made in `headwater.pick`."""

import argparse
import asyncio
import dataclasses
import json
from typing import Final

from headwater.cli.bench import measure
from headwater.cli.load import Shape, Summary
from headwater.cli.parser import CommandError, UsageError
from headwater.logs import configure_logging
from headwater.pick import ImpossibleError, Workload, WorkloadError, command

_LONGEST: Final = 60.0
"""Seconds that a measurement takes at most: what was answered by then counts."""
_MOST_AT_ONCE: Final = 64
_ROUNDS: Final = 3
"""Requests of each that asks, so that most of the time all of them are answered."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Ranks the backends for a workload, with the reason for each place, and says how many GPUs it takes. "
        "docs/choosing.md has the rules and the arithmetic."
    )
    command.add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    configure_logging("error")  # what is tried again while a config is fetched is no part of the answer
    try:
        return command.run(arguments, _bench)
    except WorkloadError as error:
        raise UsageError(str(error)) from None
    except ImpossibleError as error:
        raise CommandError(str(error)) from None


def _bench(url: str, work: Workload) -> str:
    """Raises CommandError where nobody answers."""
    at_once = min(work.concurrency, _MOST_AT_ONCE)
    shape = Shape(_ROUNDS * at_once, at_once, work.input_tokens, work.shared_prefix, work.output_tokens)
    model, answers = asyncio.run(measure(url, shape, model=None, seconds=_LONGEST))
    if not any(not each.error for each in answers):
        why = answers[0].error if answers else f"nothing within {_LONGEST:g} s"
        raise CommandError(f"--measure: {url} answered no request: {why}")
    return json.dumps(dataclasses.asdict(Summary.of(model, at_once, answers, 0, 0)))
