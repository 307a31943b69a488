"""The front door: `headwater up | serve | route`.

The flags of `serve` and `route` are the fields of their settings: one table says what a flag is called, what it takes,
what it means, and which environment variable sets it.
"""

import argparse
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import shtab
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from headwater import __version__
from headwater.validation import finding

USAGE_ERROR = 2

S = TypeVar("S", bound=BaseSettings)


class UsageError(Exception):
    """A flag or an environment variable is wrong; the message names it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 done, 1 failed, 2 asked for in a wrong way."""
    arguments = make_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except UsageError as error:
        print(f"headwater {arguments.command}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130
    return status


def make_parser() -> argparse.ArgumentParser:
    """All commands. Takes no part in running them, so that --help is quick."""
    parser = argparse.ArgumentParser(
        prog="headwater", description="Serves open language models behind one OpenAI-compatible URL."
    )
    parser.add_argument("--version", action="version", version=f"headwater {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_up(commands)
    _add_serve(commands)
    _add_route(commands)
    _add_completion(commands)
    return parser


def _add_up(commands: Any) -> None:
    up = commands.add_parser(
        "up",
        help="run ModelDeployments on this machine, without a cluster",
        description="Runs every ModelDeployment of a YAML file as local processes: engine replicas on free ports, and "
        "a router before them. Ctrl-C stops it once the running answers are done, a second one at once.",
    )
    up.add_argument("file", type=Path, help="YAML file with one or more ModelDeployments").complete = shtab.FILE
    up.add_argument("--host", default="127.0.0.1", help="address of the gateway (default: 127.0.0.1)")
    up.add_argument("--port", type=int, default=8080, help="port of the gateway (default: 8080)")
    up.add_argument(
        "--state",
        type=Path,
        default=Path(".headwater"),
        metavar="FOLDER",
        help="where logs and the list of endpoints go (default: .headwater)",
    ).complete = shtab.DIRECTORY
    up.set_defaults(run=_up)


def _add_serve(commands: Any) -> None:
    from headwater_engine.config import EngineSettings

    serve = commands.add_parser(
        "serve",
        help="run one engine",
        description="Serves one model over the OpenAI API. Every flag can also be set by the environment variable "
        "in its help.",
    )
    _add_settings(serve, EngineSettings, positional="model")
    serve.set_defaults(run=_serve)


def _add_route(commands: Any) -> None:
    from headwater_router.config import RouterSettings

    route = commands.add_parser(
        "route",
        help="run one router before engines that are there",
        description="Routes to OpenAI-compatible engines. Every flag can also be set by the environment variable in "
        "its help.",
    )
    _add_settings(route, RouterSettings)
    route.set_defaults(run=_route)


def _add_completion(commands: Any) -> None:
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description='For bash: eval "$(headwater completion bash)". For zsh, write it to a file _headwater in $fpath.',
    )
    completion.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    completion.set_defaults(run=_completion)


def _up(arguments: argparse.Namespace) -> int:
    from headwater.local import up
    from headwater.resource import ResourceError

    try:
        return up(arguments.file, host=arguments.host, port=arguments.port, state=arguments.state)
    except ResourceError as error:
        print(f"headwater up: {error}", file=sys.stderr)
        return 1


def _serve(arguments: argparse.Namespace) -> int:
    from headwater_engine.config import EngineSettings

    settings = _settings(arguments, EngineSettings, positional="model")
    if settings.max_batched_tokens < settings.max_num_seqs:
        raise UsageError(
            f"--max-batched-tokens ({settings.max_batched_tokens}) must be at least --max-num-seqs "
            f"({settings.max_num_seqs}): each running request decodes a token in every step"
        )
    run: Callable[[EngineSettings], int] = _import("headwater_engine.server.app", "engine").run
    return run(settings)


def _route(arguments: argparse.Namespace) -> int:
    from headwater_router.config import RouterSettings

    settings = _settings(arguments, RouterSettings)
    app = _import("headwater_router.app", "router")
    try:
        status: int = app.run(settings)
    except (app.SettingsError, app.EndpointError) as error:
        raise UsageError(str(error)) from None
    return status


def _completion(arguments: argparse.Namespace) -> int:
    print(shtab.complete(make_parser(), arguments.shell))
    return 0


def _import(module: str, extra: str) -> Any:
    """Raises UsageError where the extra that the module needs is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: pip install 'headwater[{extra}]'") from None


# Settings as flags


def _add_settings(parser: argparse.ArgumentParser, settings: type[BaseSettings], positional: str | None = None) -> None:
    prefix = settings.model_config["env_prefix"]
    for name, field in settings.model_fields.items():
        text = f"{field.description}{_default_text(field)} [{prefix}{name.upper()}]".replace("%", "%%")
        if name == positional:
            parser.add_argument(name, metavar=name.upper(), help=text)
            continue
        parser.add_argument(f"--{flag(name)}", dest=name, default=argparse.SUPPRESS, help=text, **_kind(name, field))


def flag(field: str) -> str:
    """How a field is called on the command line."""
    return field.replace("_", "-")


def _default_text(field: FieldInfo) -> str:
    if field.default is None or field.default is PydanticUndefined or field.default == []:
        return ""
    return f" (default: {field.default})"


def _kind(name: str, field: FieldInfo) -> dict[str, Any]:
    """What argparse needs to know; values are checked by the settings themselves, which know the limits."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    metavar = name.rpartition("_")[2].upper()
    if get_origin(annotation) is list:
        return {"action": "append", "metavar": metavar}
    return {"metavar": metavar}


def _settings(arguments: argparse.Namespace, settings: type[S], positional: str | None = None) -> S:
    """Flags over environment variables over defaults. Raises UsageError, which names the flag."""
    given = {name: value for name, value in vars(arguments).items() if name in settings.model_fields}
    try:
        return settings(**given)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name = str(detail["loc"][0]) if detail["loc"] else ""
        shown = name.upper() if name == positional else f"--{flag(name)}"
        raise UsageError(f"{shown}: {finding(detail)}") from None
