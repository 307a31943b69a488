"""The front door: `headwater up | serve | route | pick`.

The flags of `serve` and `route` are the fields of their settings: one table says what a flag is called, what it takes,
what it means, and which environment variable sets it.
"""

import argparse
import difflib
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import shtab
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsError

from headwater import __version__
from headwater.validation import finding

USAGE_ERROR = 2

S = TypeVar("S", bound=BaseSettings)


class UsageError(Exception):
    """A flag or an environment variable is wrong; the message names it."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one sentence, not with all flags, and no flag can be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 done, 1 failed, 2 asked for in a wrong way."""
    arguments, unknown = make_parser().parse_known_args(argv)
    try:
        if unknown:
            raise UsageError(_unknown_text(unknown[0], arguments.parser))
        status: int = arguments.run(arguments)
    except UsageError as error:
        print(f"headwater {arguments.command}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130
    return status


def _unknown_text(argument: str, parser: argparse.ArgumentParser) -> str:
    flags = re.findall(r"--[a-z-]+", parser.format_usage())
    close = difflib.get_close_matches(argument.partition("=")[0], flags, n=1)
    hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
    return f"unknown argument {argument}; {hint}"


def make_parser() -> argparse.ArgumentParser:
    """All commands. Takes no part in running them, so that --help is quick."""
    parser = Parser(
        prog="headwater",
        description="Serves open language models behind one OpenAI-compatible URL.",
        epilog="`headwater COMMAND --help` says more. A first try: headwater up examples/smollm2.yaml",
    )
    parser.add_argument("--version", action="version", version=f"headwater {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_up(commands)
    _add_serve(commands)
    _add_route(commands)
    _add_pick(commands)
    _add_fetch(commands)
    _add_keys(commands)
    _add_operate(commands)
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
    up.add_argument("--port", type=_port, default=8080, help="port of the gateway; 0 takes a free one (default: 8080)")
    up.add_argument(
        "--state",
        type=Path,
        default=Path(".headwater"),
        metavar="FOLDER",
        help="where logs and the list of endpoints go (default: .headwater)",
    ).complete = shtab.DIRECTORY
    up.set_defaults(run=_up, parser=up)


def _add_serve(commands: Any) -> None:
    from headwater_engine.config import EngineSettings

    serve = commands.add_parser(
        "serve",
        help="run one engine",
        description="Serves one model over the OpenAI API. Every flag can also be set by the environment variable "
        "in its help.",
    )
    _add_settings(serve, EngineSettings, positional="model")
    serve.set_defaults(run=_serve, parser=serve)


def _add_route(commands: Any) -> None:
    from headwater_router.config import RouterSettings

    route = commands.add_parser(
        "route",
        help="run one router before engines that are there",
        description="Routes to OpenAI-compatible engines. Every flag can also be set by the environment variable in "
        "its help.",
    )
    _add_settings(route, RouterSettings)
    route.add_argument("--check", action="store_true", help="only check flags and files, and say what would be served")
    route.set_defaults(run=_route, parser=route)


def _add_pick(commands: Any) -> None:
    from headwater.pick.command import add_flags

    picker = commands.add_parser(
        "pick",
        help="choose a backend for a workload, with the arithmetic",
        description="Ranks the backends for a workload, with the reason for each place, and says how many GPUs it "
        "takes. docs/choosing.md has the rules and the arithmetic.",
    )
    add_flags(picker)
    picker.set_defaults(run=_pick, parser=picker)


def _add_fetch(commands: Any) -> None:
    from headwater.fetch.command import add_flags

    fetcher = commands.add_parser(
        "fetch",
        help="bring a model's weights into a folder",
        description="Fetches a model's weights into a folder, which is there once it is complete. Goes on where it was "
        "interrupted; two at once wait for one another.",
    )
    add_flags(fetcher)
    fetcher.set_defaults(run=_fetch, parser=fetcher)


def _add_keys(commands: Any) -> None:
    from headwater.keys import add_flags

    keys = commands.add_parser(
        "keys",
        help="make an API key",
        description="Makes an API key for `headwater route --api-keys`, and shows it once: only its hash is kept.",
    )
    add_flags(keys)
    keys.set_defaults(run=_keys, parser=keys)


def _add_operate(commands: Any) -> None:
    from headwater_operator.config import OperatorSettings

    operate = commands.add_parser(
        "operate",
        help="run the Kubernetes operator",
        description="Turns the ModelDeployments of a cluster into engines. Speaks to the cluster of its own pod, or to "
        "that of KUBECONFIG. Every flag can also be set by the environment variable in its help.",
    )
    _add_settings(operate, OperatorSettings)
    operate.set_defaults(run=_operate, parser=operate)


def _add_completion(commands: Any) -> None:
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description='For bash: eval "$(headwater completion bash)". For zsh, write it to a file _headwater in $fpath. '
        "For fish: headwater completion fish | source.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(run=_completion, parser=completion)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, found {text!r}")
    return int(text)


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
    if (mistake := settings.mistake_of_ranks()) is not None:
        raise UsageError(mistake)
    run: Callable[[EngineSettings], int] = _import("headwater_engine.server.app", "engine").run
    return run(settings)


def _route(arguments: argparse.Namespace) -> int:
    from headwater_router.config import RouterSettings

    settings = _settings(arguments, RouterSettings)
    if arguments.check:
        check: Callable[[RouterSettings], int] = _import("headwater_router.check", "router").run
        return check(settings)
    app = _import("headwater_router.app", "router")
    try:
        status: int = app.run(settings)
    except (app.SettingsError, app.EndpointError) as error:
        raise UsageError(str(error)) from None
    return status


def _pick(arguments: argparse.Namespace) -> int:
    from headwater.pick import ImpossibleError, WorkloadError
    from headwater.pick.command import run

    try:
        return run(arguments)
    except WorkloadError as error:
        raise UsageError(str(error)) from None
    except ImpossibleError as error:
        print(f"headwater pick: {error}", file=sys.stderr)
        return 1


def _fetch(arguments: argparse.Namespace) -> int:
    from headwater.fetch.command import run

    if arguments.verify is None and arguments.folder is None:
        raise UsageError("it takes SOURCE and FOLDER, or --verify FOLDER")
    return run(arguments)


def _keys(arguments: argparse.Namespace) -> int:
    from headwater.keys import run

    return run(arguments)


def _operate(arguments: argparse.Namespace) -> int:
    from headwater_operator.config import OperatorSettings

    settings = _settings(arguments, OperatorSettings)
    run: Callable[[OperatorSettings], int] = _import("headwater_operator.main", "operator").run
    return run(settings)


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
    for name, field in settings.model_fields.items():
        text = f"{field.description}{_default_text(field)} [{variable(settings, name)}]".replace("%", "%%")
        if name == positional:
            parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=name.upper(), help=text)
            continue
        parser.add_argument(f"--{flag(name)}", dest=name, default=argparse.SUPPRESS, help=text, **_kind(name, field))


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


def _check_variables(settings: type[BaseSettings]) -> None:
    """A variable that is misspelled is as wrong as a flag: with HEADWATER_ROUTER_API_KEY a router would run open.

    Raises UsageError.
    """
    prefix = settings.model_config["env_prefix"]
    known = [variable(settings, name).removeprefix(prefix) for name in settings.model_fields]
    given = {each.upper() for each in os.environ}  # Case does not matter to pydantic-settings.
    for name in sorted(each.removeprefix(prefix) for each in given if each.startswith(prefix)):
        if name not in known and not _SERVICE_LINK.fullmatch(name):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise UsageError(f"unknown variable {prefix}{name}{hint}")


def _settings(arguments: argparse.Namespace, settings: type[S], positional: str | None = None) -> S:
    """Flags over environment variables over defaults. Raises UsageError, which names the flag or the variable."""
    _check_variables(settings)
    given = {name: value for name, value in vars(arguments).items() if name in settings.model_fields}
    try:
        return settings(**given)
    except SettingsError as error:
        # pydantic-settings reads lists out of variables as JSON, and says in its message only of which field.
        name = re.findall(r'field "(\w+)"', str(error))[0]
        raise UsageError(f'{variable(settings, name)}: must be a JSON list of strings, such as ["a", "b"]') from None
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name = str(detail["loc"][0])
        if name not in given and detail["type"] != "missing":
            shown = variable(settings, name)
        else:
            shown = name.upper() if name == positional else f"--{flag(name)}"
        raise UsageError(f"{shown}: {finding(detail)}") from None
