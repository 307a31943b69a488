"""`headwater ps`: what `headwater up` runs on this machine."""

import argparse
import json
import sys

import httpx
import msgspec
from rich.table import Table

from headwater.cli.flags import add_json, add_state
from headwater.cli.local.runs import Part, Run, runs
from headwater.cli.tables import make_table, print_table

_PATIENCE = 2.0
"""Seconds for an answer."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = "Lists what `headwater up` runs on this machine: each process, and how it does."
    add_state(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    found = runs(arguments.state)
    with httpx.Client(timeout=_PATIENCE, trust_env=False) as client:
        states = {each.name: [_state(client, part) for part in each.parts] for each in found}
    if arguments.json:
        print(json.dumps([_told(each, states[each.name]) for each in found], indent=2))
    elif found:
        print_table(table(found, states))
    else:
        print(f"nothing is up here ({arguments.state}); headwater up FILE starts what is in a file", file=sys.stderr)
    return 0


def _state(client: httpx.Client, part: Part) -> str:
    try:
        answer = client.get(part.url + part.ready_path)
        body = answer.json() if answer.content else {}
    except (httpx.HTTPError, ValueError):
        return "no answer"
    said = body.get("status") if isinstance(body, dict) else None
    return "ready" if answer.status_code == 200 else str(said or f"answers {answer.status_code}")


def _told(run: Run, states: list[str]) -> dict[str, object]:
    told: dict[str, object] = msgspec.to_builtins(run)
    parts = [msgspec.to_builtins(part) | {"state": state} for part, state in zip(run.parts, states, strict=True)]
    return told | {"parts": parts}


def table(found: list[Run], states: dict[str, list[str]]) -> Table:
    """`states`: of each run's parts, in their order."""
    shown = make_table(("run", "process", "state", "url", "serves"))
    for run in found:
        for part, state in zip(run.parts, states[run.name], strict=True):
            gateway = part.url == run.url
            shown.add_row(run.name, part.name, state, part.url, ", ".join(run.models) if gateway else "")
    return shown
