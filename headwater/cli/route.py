"""`headwater route`: one router before engines that are there."""

import argparse
from collections.abc import Callable

from headwater.cli.parser import UsageError
from headwater.cli.parts import part
from headwater.cli.settings import add_settings, read_settings
from headwater_router.config import RouterSettings


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Routes to OpenAI-compatible engines. Every flag can also be set by the environment variable in its help."
    )
    add_settings(parser, RouterSettings)
    parser.add_argument("--check", action="store_true", help="only check flags and files, and say what would be served")


def run(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments, RouterSettings)
    if arguments.check:
        check: Callable[[RouterSettings], int] = part("headwater_router.check", "router").run
        return check(settings)
    app = part("headwater_router.app", "router")
    try:
        status: int = app.run(settings)
    except (app.SettingsError, app.EndpointError) as error:
        raise UsageError(str(error)) from None
    return status
