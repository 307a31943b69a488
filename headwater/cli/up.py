"""`headwater up`: ModelDeployments as processes of this machine."""

import argparse
import re
import sys
from pathlib import Path
from typing import Final

import shtab

from headwater.cli.flags import add_state
from headwater.cli.parser import CommandError, UsageError, port

_SOURCE: Final = re.compile(r"(?P<scheme>hf|package|s3|oci|file):/+(?P<rest>.*)")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs every ModelDeployment of a YAML file as local processes: engine replicas on free ports, and a router "
        "before them. Ctrl-C stops it once the running answers are done, a second one at once."
    )
    file = parser.add_argument("file", metavar="FILE", type=Path, help="YAML file with one or more ModelDeployments")
    file.complete = shtab.FILE  # type: ignore[attr-defined]
    parser.add_argument("--host", default="127.0.0.1", help="address of the gateway (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=port, default=8080, help="port of the gateway; 0 takes a free one (default: 8080)"
    )
    add_state(parser)
    parser.add_argument("--json", action="store_true", help="tell what happens as JSON, an object a line, on stdout")


def run(arguments: argparse.Namespace) -> int:
    from headwater.cli.local.display import JsonLines, Text
    from headwater.cli.local.plan import up
    from headwater.resource import ResourceError

    if (source := _SOURCE.fullmatch(str(arguments.file))) is not None:
        # A path has one slash where a URL has two.
        raise UsageError(
            f"file: {source['scheme']}://{source['rest']} is a model, and no file with ModelDeployments: "
            f"headwater serve {source['scheme']}://{source['rest']} serves it by itself"
        )
    try:
        display = JsonLines(sys.stdout) if arguments.json else Text()
        return up(arguments.file, host=arguments.host, port=arguments.port, state=arguments.state, display=display)
    except ResourceError as error:
        raise CommandError(str(error)) from None
