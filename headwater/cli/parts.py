"""The programs that commands start: a machine may have the extra of one, and not of another."""

import importlib
from typing import Any

from headwater.cli.parser import UsageError
from headwater.extras import missing


def part(module: str, extra: str) -> Any:
    """Raises UsageError where the extra that the module needs is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(missing(str(error.name), extra)) from None
