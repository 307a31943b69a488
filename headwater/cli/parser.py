"""How commands are read: argparse, whose mistakes are answered with one sentence that names the remedy."""

import argparse
import difflib
import re
from typing import Any, Final, NoReturn

USAGE_ERROR: Final = 2


class UsageError(Exception):
    """A flag or an environment variable is wrong; the message names it."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one sentence, not with all flags, and no flag can be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def unknown_text(argument: str, parser: argparse.ArgumentParser) -> str:
    """What is said of an argument that the parser does not know."""
    flags = re.findall(r"--[a-z-]+", parser.format_usage())
    close = difflib.get_close_matches(argument.partition("=")[0], flags, n=1)
    hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
    return f"unknown argument {argument}; {hint}"


def port(text: str) -> int:
    """A flag's type. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, found {text!r}")
    return int(text)
