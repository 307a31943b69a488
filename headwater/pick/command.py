"""`headwater pick`: flags that are the fields of a workload, and three ways to show what was picked."""

import argparse
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from headwater.extras import missing as missing_package
from headwater.pick.arithmetic import explain
from headwater.pick.checkpoint import read_model
from headwater.pick.choice import Part, Pick, pick_kinds
from headwater.pick.config import ConfigError
from headwater.pick.hardware import SOURCES, Accelerator
from headwater.pick.interactive import as_flags, ask
from headwater.pick.measured import Measured, MeasuredError, read_measured
from headwater.pick.plot import write_plot
from headwater.pick.ranking import Candidate
from headwater.pick.render import deployments, missing, to_yaml
from headwater.pick.shape import Shape
from headwater.pick.speed import Range, speed_of
from headwater.pick.workload import Workload, WorkloadError, workload

# Flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of Workload, and those that say how to show the pick."""
    for name, field in Workload.model_fields.items():
        if field.exclude:
            continue
        flag = f"--{name.replace('_', '-')}"
        text = f"{field.description}{_default_text(field)}".replace("%", "%%")
        parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **_kind(name, field))
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--yaml", action="store_true", help="Print the ModelDeployment, ready for kubectl apply -f -")
    shown.add_argument("--json", action="store_true", help="Print everything as JSON")
    shown.add_argument("--explain", action="store_true", help="Print the arithmetic of every backend, not the first's")
    parser.add_argument("--config", metavar="PATH", help="The model's config.json, its folder, or hf://OWNER/NAME")
    parser.add_argument(
        "--measure", metavar="URL|FILE", help="Take speeds from a replica at URL, or from what bench --json printed"
    )
    parser.add_argument("--interactive", action="store_true", help="Ask for what no flag says")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Write requests at once by length, as .svg or .png")


def _default_text(field: FieldInfo) -> str:
    if isinstance(field.default, bool) or not isinstance(field.default, int | float | str):
        return ""
    return f" (default: {field.default})"


def _kind(name: str, field: FieldInfo) -> dict[str, Any]:
    """What argparse needs to know; values are checked by Workload, which knows the limits."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation), "type": str.lower}
    if annotation is bool:
        return {"action": "store_true"}
    if annotation in (int, float) and name != "params":
        return {"metavar": "N" if annotation is int else "NUMBER"}
    return {"metavar": {"params": "SIZE", "build_time": "DURATION"}.get(name, name.upper())}


# The command


Bench = Callable[[str, Workload], str]
"""Measures a URL under the load of a workload, and gives what `headwater bench --json` prints."""


def run(arguments: argparse.Namespace, bench: Bench) -> int:
    """Print what was picked. Raises WorkloadError, and ImpossibleError where nothing can be."""
    given = {name: value for name, value in vars(arguments).items() if name in Workload.model_fields}
    if arguments.config and "://" in arguments.config:
        given.setdefault("model", arguments.config)
    if arguments.interactive:
        given = ask(given, _answer, print)
        print(f"\nheadwater pick {as_flags(given)}\n")
    picked = pick_kinds(given, _read(arguments.config), _measured(arguments.measure, given, bench))
    if arguments.plot is not None:
        _plot(picked, arguments.plot)
    if arguments.yaml:
        print(to_yaml(picked), end="")
    elif arguments.json:
        print(json.dumps(to_json(picked), indent=2, ensure_ascii=False))
    else:
        _show(picked, Console(highlight=False), all_of_them=arguments.explain)
    return 0


def _answer(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        raise WorkloadError("--interactive: the answers ended before the questions") from None


def _read(place: str | None) -> Shape | None:
    if place is None:
        return None
    try:
        return read_model(place)
    except ConfigError as error:
        raise WorkloadError(f"--config: {error}") from None


_TRAFFIC: Final = ("concurrency", "input_tokens", "output_tokens", "shared_prefix")


def _measured(place: str | None, given: Mapping[str, Any], bench: Bench) -> Measured | None:
    if place is None:
        return None
    traffic = workload({name: given[name] for name in _TRAFFIC if name in given})
    try:
        is_url = place.startswith(("http://", "https://"))
        return read_measured(bench(place, traffic) if is_url else Path(place).read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkloadError(f"--measure: {place}: cannot be read: {error.strerror}") from None
    except (MeasuredError, UnicodeDecodeError) as error:
        raise WorkloadError(f"--measure: {place}: {error}") from None


def _plot(picked: Pick, path: Path) -> None:
    if path.suffix.lower() not in (".svg", ".png"):
        raise WorkloadError(f"--plot: must end with .svg or .png; found {path}")
    try:
        write_plot(picked, path)
    except OSError as error:
        raise WorkloadError(f"--plot: {path}: cannot be written: {error.strerror}") from None
    except ImportError:
        raise WorkloadError(f"--plot: {path}: {missing_package('matplotlib', 'bench')}; .svg needs nothing") from None


def to_json(picked: Pick) -> dict[str, Any]:
    """Everything that was found out, as JSON's types."""
    return {
        "workload": {to_camel(name): value for name, value in picked.workload.model_dump(mode="json").items()},
        "model": {
            "name": picked.shape.name,
            "family": picked.shape.family,
            "parameters": picked.shape.parameters,
            "kvElementsPerToken": picked.shape.kv_elements,
            "estimated": picked.shape.estimated,
            "source": picked.shape.source,
            "quantization": picked.workload.known_quantization,
        },
        "accelerator": _accelerator(picked.workload.accelerator),
        "measured": None if picked.workload.measured is None else picked.workload.measured.model_dump(),
        "places": [_place(number, candidate) for number, candidate in enumerate(picked.places, 1)],
        "excluded": [{"backend": each.backend, "obstacles": list(each.obstacles)} for each in picked.excluded],
        "parts": [_part(part, picked.shape) for part in picked.parts],
        "deployments": [] if missing(picked) else deployments(picked),
        "notes": list(picked.notes),
    }


def _accelerator(device: Accelerator) -> dict[str, Any]:
    return {
        "name": device.name,
        "memoryGiB": device.memory_gib,
        "bandwidthGBs": device.bandwidth_gbs,
        "tflops": device.tflops,
        "linkGBs": device.link_gbs,
        "sources": {figure: SOURCES.get(source, source) for figure, source in device.sources.items()},
        "estimated": list(device.estimated),
    }


def _place(number: int, candidate: Candidate) -> dict[str, Any]:
    return {"place": number, "backend": candidate.backend, "reason": candidate.reason}


def _part(part: Part, shape: Shape) -> dict[str, Any]:
    plan = part.plan
    speed = speed_of(shape, part.workload, plan)
    return {
        "backend": part.candidate.backend,
        "weight": part.weight,
        "replicas": plan.replicas,
        **asdict(plan.layout),
        "gpus": plan.gpus,
        "weightsGiB": round(plan.weights_gib, 2),
        "kvGiB": round(plan.kv_gib, 2),
        "kvBytesPerToken": plan.kv_token_bytes,
        "kvTokens": plan.kv_tokens,
        "requestsPerReplica": plan.requests,
        "tokensPerSecond": _bounds(speed.tokens),
        "firstTokenSeconds": _bounds(speed.first),
        "tokenSeconds": _bounds(speed.each),
        "arithmetic": [f"{what}: {how}" for what, how in part.arithmetic()],
    }


def _bounds(of: Range) -> list[float]:
    return [float(f"{of.low:.3g}"), float(f"{of.high:.3g}")]


def _show(picked: Pick, console: Console, *, all_of_them: bool) -> None:
    work = picked.workload
    what = f"{work.gpus} x {work.accelerator.title}"
    console.print(
        f"[bold]{picked.shape.name}[/] on {what}: {work.concurrency:,} requests at once, "
        f"{work.input_tokens:,} + {work.output_tokens:,} tokens each\n"
    )
    console.print(_ranked(picked))
    for part in picked.parts:
        share = f", sized for {part.weight}% of the requests" if part.role else ""
        console.print(f"\n[bold]{part.candidate.backend}[/]{share}")
        console.print(_pairs(part.arithmetic()))
    for place in picked.places if all_of_them else ():
        if place.plan and place is not picked.parts[0].candidate:
            console.print(f"\n[bold]{place.backend}[/]")
            console.print(_pairs(list(explain(work, picked.shape, place.able, place.plan))))
    console.print()
    for note in picked.notes:
        console.print(note)
    console.print(
        f"For --yaml: {lack}." if (lack := missing(picked)) else "The same with --yaml is ready for: kubectl apply -f -"
    )


def _ranked(picked: Pick) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "backend", "GPUs", "why"):
        table.add_column(column)
    for number, candidate in enumerate(picked.places, 1):
        table.add_row(str(number), candidate.backend, _size_text(candidate), candidate.reason)
    for excluded in picked.excluded:
        table.add_row("-", excluded.backend, "", f"It {'; it '.join(excluded.obstacles)}.", style="dim")
    return table


def _size_text(candidate: Candidate) -> str:
    """Replicas times GPUs of each."""
    return f"{candidate.plan.replicas} x {candidate.plan.layout.gpus}" if candidate.plan else ""


def _pairs(lines: list[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for what, how in lines:
        table.add_row(what, how)
    return table
