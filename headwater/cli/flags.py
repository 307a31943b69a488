"""Flags that several commands have."""

import argparse
from pathlib import Path

import shtab

from headwater.cli.local.runs import DEFAULT_STATE


def add_state(parser: argparse.ArgumentParser) -> None:
    state = parser.add_argument(
        "--state",
        type=Path,
        default=DEFAULT_STATE,
        metavar="FOLDER",
        help=f"where `headwater up` keeps logs and what it runs (default: {DEFAULT_STATE})",
    )
    state.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
