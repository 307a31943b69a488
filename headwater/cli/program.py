"""The commands, and what all of them share: how they are found, and how they end."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final, Protocol, cast

from headwater import __version__
from headwater.cli.parser import USAGE_ERROR, CommandError, Parser, UsageError, unknown_text

FAILED: Final = 1

COMMANDS: Final = {
    "up": "run ModelDeployments on this machine, without a cluster",
    "ps": "list what `up` runs",
    "logs": "print what its processes wrote",
    "stop": "end it",
    "serve": "run one engine",
    "route": "run one router before engines that are there",
    "top": "show what a router does at this moment",
    "bench": "send load to a URL, and measure the answers",
    "pick": "choose a backend for a workload, with the arithmetic",
    "fetch": "bring a model's weights into a folder",
    "keys": "make an API key",
    "operate": "run the Kubernetes operator",
    "status": "tell how the ModelDeployments of a cluster do",
    "completion": "print a shell's completion script",
    "man": "print the manual page",
}
"""Each is the module of its name, beside this one."""


class Command(Protocol):
    """What such a module has."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """The exit status. Raises UsageError or CommandError."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 done, 1 failed, 2 asked for in a wrong way, 130 interrupted."""
    try:
        return _run(argv)
    except KeyboardInterrupt:  # also while it imports what a command needs
        return 130


def _run(argv: Sequence[str] | None) -> int:
    given = _as_known(sys.argv[1:] if argv is None else argv)
    arguments, unknown = make_parser(given[0]).parse_known_args(given)
    try:
        if unknown:
            raise UsageError(unknown_text(unknown[0], arguments.parser))
        return _module(arguments.command).run(arguments)
    except (UsageError, CommandError) as error:
        print(f"headwater {arguments.command}: {error}", file=sys.stderr)
        return USAGE_ERROR if isinstance(error, UsageError) else FAILED


def _as_known(given: Sequence[str]) -> list[str]:
    """What people try first, as what it stands for."""
    match list(given):
        case [] | ["help"]:
            return ["--help"]
        case ["help", command, *_]:
            return [command, "--help"]
        case ["version" | "-V"]:
            return ["--version"]
        case known:
            return known


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """All commands, with the flags of `only` or, for None, of all: to know them all takes the parts' imports."""
    parser = Parser(
        prog="headwater",
        description="Serves open language models behind one OpenAI-compatible URL.",
        epilog="`headwater COMMAND --help` says more. A first try: headwater up examples/smollm2.yaml",
    )
    parser.add_argument("-V", "--version", action="version", version=f"headwater {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.set_defaults(parser=command)
        if only in (None, name):
            _module(name).add_flags(command)
    return parser


def _module(command: str) -> Command:
    return cast("Command", importlib.import_module(f"headwater.cli.{command}"))
