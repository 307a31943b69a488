"""`headwater fetch`: its flags, and how it ends."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Final

import shtab
import structlog

from headwater.fetch import fetch
from headwater.fetch.errors import FetchError
from headwater.logs import configure_logging

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes takes the last words of a container from."""
_MOST: Final = 4000
"""Bytes of them that it keeps."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="hf://OWNER/NAME[/PATH], s3://BUCKET/PATH, oci://REGISTRY/IMAGE:TAG, file://PATH or package://NAME",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        help="where to; must not be there yet, and is complete once it is there",
    ).complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    parser.add_argument("--revision", default="main", help="branch, tag or commit of an hf:// source (default: main)")


def run(arguments: argparse.Namespace) -> int:
    configure_logging("info")
    # The first process of a container ignores SIGTERM if it does not ask for it. What has come is kept.
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        fetch(arguments.source, arguments.folder, arguments.revision)
    except FetchError as error:
        print(f"headwater fetch: {error}", file=sys.stderr)
        _leave_word(str(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _leave_word(message: str) -> None:
    if TERMINATION_LOG.exists():
        try:
            TERMINATION_LOG.write_bytes(message.encode()[:_MOST])
        except OSError as error:
            structlog.get_logger(__name__).warning("the reason cannot be left for Kubernetes", reason=str(error))
