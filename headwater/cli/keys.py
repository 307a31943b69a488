"""`headwater keys new`: makes an API key."""

import argparse
import sys
from pathlib import Path

import shtab
import yaml

from headwater.cli.parser import CommandError, UsageError
from headwater.keys import KeysFileError, add_to_file, checked_name, hashed, new_key


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = "Makes an API key for `headwater route --api-keys`, and shows it once: only its hash is kept."
    parser.add_argument("action", choices=("new",), metavar="new", help="make a key")
    parser.add_argument("name", metavar="NAME", help="whose it is; logs and metrics call it so")
    parser.add_argument(
        "--file", type=Path, help="a file for `headwater route --api-keys`, to which the key is added; else only shown"
    ).complete = shtab.FILE  # type: ignore[attr-defined]


def run(arguments: argparse.Namespace) -> int:
    """The key goes to stdout, by itself, so that a script can take it; all else is said on stderr."""
    key = new_key()
    try:
        entry = {"name": checked_name(arguments.name), "hash": hashed(key)}
        if arguments.file is not None:
            add_to_file(arguments.file, entry)
    except KeysFileError as error:
        raise CommandError(str(error)) from None
    except ValueError as error:
        raise UsageError(f"NAME: {error}") from None
    print(key)
    if arguments.file is None:
        print("The key is shown this once. Its entry, for a file of keys:", file=sys.stderr)
        print(yaml.safe_dump({"keys": [entry]}, sort_keys=False), end="", file=sys.stderr)
    else:
        print(f"The key is shown this once; {arguments.file} has its hash.", file=sys.stderr)
    return 0
