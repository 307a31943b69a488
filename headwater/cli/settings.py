"""Settings as flags: one table says what a flag is called, what it takes, what it means, and which variable sets it."""

import argparse
import difflib
import os
import re
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import shtab
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsError

from headwater.cli.config_file import read_config
from headwater.cli.parser import UsageError
from headwater.validation import finding

S = TypeVar("S", bound=BaseSettings)


def add_settings(parser: argparse.ArgumentParser, settings: type[BaseSettings], positional: str | None = None) -> None:
    config = parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML with the same settings, by their flags' names; flags and variables win over it",
    )
    config.complete = shtab.FILE  # type: ignore[attr-defined]
    headings: dict[str, str] = getattr(settings, "groups", {})
    group: argparse._ActionsContainer = parser
    for name, field in settings.model_fields.items():
        if name in headings:
            group = parser.add_argument_group(headings[name])
        text = f"{field.description}{_default_text(field)} [{variable(settings, name)}]".replace("%", "%%")
        if name == positional:
            added = parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=name.upper(), help=text)
            added.complete = shtab.FILE | {"bash": "_headwater_models"}  # type: ignore[attr-defined]
            continue
        added = group.add_argument(
            f"--{flag(name)}", dest=name, default=argparse.SUPPRESS, help=text, **_kind(name, field)
        )
        if Path in (field.annotation, *get_args(field.annotation)):
            added.complete = shtab.FILE  # type: ignore[attr-defined]


def flag(field: str) -> str:
    """How a field is called on the command line."""
    return field.replace("_", "-")


def variable(settings: type[BaseSettings], field: str) -> str:
    """How a field is called in the environment."""
    return f"{settings.model_config['env_prefix']}{field.upper()}"


def _default_text(field: FieldInfo) -> str:
    match field.default:
        case None | []:
            return ""
        case bool(default):
            return f" (default: {'on' if default else 'off'})"
        case default if default is PydanticUndefined:
            return ""
        case default:
            return f" (default: {default})"


def _kind(name: str, field: FieldInfo) -> dict[str, Any]:
    """What argparse needs to know; values are checked by the settings themselves, which know the limits."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"metavar": "JSON"}
    if annotation in (int, float):
        return {"metavar": "N" if annotation is int else "NUMBER"}
    metavar = name.rpartition("_")[2].upper()
    return {"metavar": metavar, "action": "append"} if get_origin(annotation) is list else {"metavar": metavar}


_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
"""Variables that Kubernetes makes for Services, in the pods of their namespace."""
_OURS = "HEADWATER_"
_PARTS = ("ENGINE", "ROUTER", "OPERATOR")


def _check_variables(settings: type[BaseSettings]) -> None:
    """A variable that is misspelled is as wrong as a flag: with HEADWATER_ROUTER_API_KEY a router would run open.

    Raises UsageError.
    """
    prefix = settings.model_config["env_prefix"]
    fields = [name.upper() for name in settings.model_fields]
    known = [prefix + name for name in fields]
    given = {each.upper() for each in os.environ}  # Case does not matter to pydantic-settings.
    for name in sorted(each for each in given if each.startswith(_OURS) and each not in known):
        if name.startswith(prefix) and not _SERVICE_LINK.fullmatch(name.removeprefix(prefix)):
            close = difflib.get_close_matches(name.removeprefix(prefix), fields, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise UsageError(f"unknown variable {name}{hint}")
        if (meant := _meant(name.removeprefix(_OURS), prefix)) in known:
            raise UsageError(f"unknown variable {name}; did you mean {meant}?")


def _meant(name: str, prefix: str) -> str:
    """Of a variable that names no part, or misspells it: what it would be with the part's prefix; else nothing."""
    if _SERVICE_LINK.fullmatch(name):
        return ""
    part, _, rest = name.partition("_")
    if part in _PARTS:
        return ""
    return prefix + (rest if difflib.get_close_matches(part, _PARTS) else name)


def read_settings(arguments: argparse.Namespace, settings: type[S], positional: str | None = None) -> S:
    """Flags over environment variables over a file over defaults. Raises UsageError, which names what is wrong."""
    _check_variables(settings)
    given = {name: value for name, value in vars(arguments).items() if name in settings.model_fields}
    file: Path | None = arguments.config
    variables = {each.upper() for each in os.environ}
    in_file = {
        name: value
        for name, value in (read_config(file, settings) if file else {}).items()
        if name not in given and variable(settings, name) not in variables
    }
    try:
        return settings(**in_file | given)
    except SettingsError as error:
        # pydantic-settings reads lists out of variables as JSON, and says in its message only of which field.
        name = re.findall(r'field "(\w+)"', str(error))[0]
        raise UsageError(f'{variable(settings, name)}: must be a JSON list of strings, such as ["a", "b"]') from None
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name = str(detail["loc"][0])
        if name in in_file:
            shown = f"{file}: {flag(name)}"
        elif name not in given and detail["type"] != "missing":
            shown = variable(settings, name)
        else:
            shown = name.upper() if name == positional else f"--{flag(name)}"
        raise UsageError(f"{shown}: {finding(detail)}") from None
