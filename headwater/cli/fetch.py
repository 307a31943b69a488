"""`headwater fetch`: its flags, and how it ends."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import shtab
import structlog

from headwater.cli.parser import UsageError
from headwater.fetch import fetch
from headwater.fetch.choice import Wish
from headwater.fetch.errors import FetchError
from headwater.fetch.manifest import verify
from headwater.kubernetes import FETCH_PORT_VARIABLE
from headwater.logs import configure_logging

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes takes the last words of a container from."""
_MOST: Final = 4000
"""Bytes of them that it keeps."""
_CURSOR: Final = b"\x1b[?25h\n"
"""Shows the terminal's cursor, which a bar hides."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetches a model's weights into a folder, which is there once it is complete. Goes on where it was "
        "interrupted; two at once wait for one another."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="hf://OWNER/NAME[/PATH], s3://BUCKET/PATH, oci://REGISTRY/IMAGE[:TAG][@DIGEST], file://PATH or "
        "package://NAME",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        nargs="?",
        help="where to; complete once it is there, and an error if it holds something else",
    ).complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    parser.add_argument("--revision", default="main", help="branch, tag or commit of an hf:// source (default: main)")
    for name, meaning in (
        ("include", "take the files of this name, and no others; may hold * and ?"),
        ("exclude", "leave out files of this name"),
    ):
        parser.add_argument(f"--{name}", metavar="NAME", action="append", default=[], help=f"{meaning}. Repeatable.")
    parser.add_argument(
        "--progress-port",
        metavar="PORT",
        type=int,
        default=os.environ.get(FETCH_PORT_VARIABLE),
        help=f"tell at this port, to whoever asks over HTTP, how far it is, as JSON (or {FETCH_PORT_VARIABLE})",
    )
    parser.add_argument(
        "--verify",
        metavar="FOLDER",
        type=Path,
        help="fetch nothing: read a folder that was fetched, and compare it with its manifest",
    ).complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0, or 1 with the reason on stderr and for Kubernetes. Raises UsageError."""
    if arguments.verify is None and arguments.folder is None:
        raise UsageError("it takes SOURCE and FOLDER, or --verify FOLDER")
    configure_logging("info")
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        said, status = _run(arguments), 0
        print(said)
    except FetchError as error:
        said, status = str(error), 1
        print(f"headwater fetch: {error}", file=sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _leave_word(said)
    return status


def _run(arguments: argparse.Namespace) -> str:
    """What was verified. Raises FetchError."""
    if arguments.verify is not None:
        try:
            manifest = verify(arguments.verify)
        except OSError as error:
            raise FetchError(f"{arguments.verify} cannot be read: {error.strerror or error}") from None
        return f"{arguments.verify} holds {manifest.origin}: {manifest.summary()}"
    wish = Wish(tuple(arguments.include), tuple(arguments.exclude))
    port = arguments.progress_port
    return fetch(arguments.source, arguments.folder, arguments.revision, wish, port).summary()


def _end(number: int, _: Any) -> None:
    """At once: what has come is kept, and there is nothing to wait for.

    The first process of a container ignores SIGTERM if it does not ask for it.
    """
    if sys.stderr.isatty():
        os.write(2, _CURSOR)
    os._exit(128 + number)


def _leave_word(message: str) -> None:
    if TERMINATION_LOG.exists():
        try:
            TERMINATION_LOG.write_bytes(message.encode()[:_MOST])
        except OSError as error:
            structlog.get_logger(__name__).warning("the reason cannot be left for Kubernetes", reason=str(error))
