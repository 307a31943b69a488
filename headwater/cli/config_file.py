"""A file with settings of `serve`, `route` or `operate`, named as their flags are: `max-model-len: 4096`."""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from headwater.cli.parser import UsageError


def read_config(file: Path, settings: type[BaseSettings]) -> dict[str, Any]:
    """By field. Raises UsageError."""
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise UsageError(f"--config: {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"--config: {file} is not YAML") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config: {file} must hold settings, such as `port: 8000`")
    return dict(_setting(file, str(name), value, settings) for name, value in content.items())


def _setting(file: Path, name: str, value: Any, settings: type[BaseSettings]) -> tuple[str, Any]:
    field = name.replace("-", "_")
    if field not in settings.model_fields:
        known = [each.replace("_", "-") for each in settings.model_fields]
        close = difflib.get_close_matches(name, known, n=1)
        raise UsageError(f"{file}: there is no setting {name!r}{f'; did you mean {close[0]}?' if close else ''}")
    # A setting that is an object is JSON in flags and variables, too.
    return field, json.dumps(value) if isinstance(value, dict) else value
