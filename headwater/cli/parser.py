"""How commands are read: argparse, whose mistakes are answered with one sentence that names the remedy."""

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from headwater.cli.elsewhere import HINTS

USAGE_ERROR: Final = 2
_CHOICE: Final = re.compile(r"argument (?P<name>\S+): invalid choice: '(?P<found>.*)' \(choose from (?P<allowed>.*)\)")
_NO_NUMBER: Final = re.compile(r"argument (?P<name>\S+): invalid (?P<kind>int|float) value: (?P<found>.*)")
_MISSING: Final = "the following arguments are required: "


class UsageError(Exception):
    """A flag or an environment variable is wrong; the message names it."""


class CommandError(Exception):
    """The command was right, and what it should do cannot be done. One sentence or two, and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one sentence, not with all flags, and no flag can be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {_in_our_words(message)}; see {self.prog} --help\n")


def _in_our_words(message: str) -> str:
    if message.startswith(_MISSING):
        return f"{message.removeprefix(_MISSING)} is missing"
    if (wrong := _NO_NUMBER.fullmatch(message)) is not None:
        kind = "a whole number" if wrong["kind"] == "int" else "a number"
        return f"{wrong['name']} must be {kind}; found {wrong['found']}"
    if (wrong := _CHOICE.fullmatch(message)) is None:
        return message.removeprefix("argument ")
    allowed = [each.strip("' ") for each in wrong["allowed"].split(",")]
    if wrong["name"] == "COMMAND":
        return f"there is no command {wrong['found']!r}{_did_you_mean(wrong['found'], allowed)}"
    return f"{wrong['name']} must be {', '.join(allowed)}; found {wrong['found']!r}"


def unknown_text(argument: str, parser: argparse.ArgumentParser) -> str:
    """What is said of an argument that the parser does not know."""
    given = argument.partition("=")[0]
    hints = HINTS.get(parser.prog.rpartition(" ")[2], {})
    if given in hints:
        return f"unknown argument {argument}; {hints[given]}"
    flags = re.findall(r"--[a-z-]+", parser.format_usage())
    return f"unknown argument {argument}{_did_you_mean(given, flags) or f'; see {parser.prog} --help'}"


def _did_you_mean(found: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(found, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def port(text: str) -> int:
    """A flag's type. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, found {text!r}")
    return int(text)
