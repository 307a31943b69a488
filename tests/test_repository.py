"""What the repository says of itself is true: reference tables, links, examples, version, and what must not be there.

The reference tables in docs/ are held to the code from both sides: nothing is missing from them, and nothing in them is
gone. What is expected is always asked of the code, never listed here.
"""

import ast
import asyncio
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from headwater import __version__, cli
from headwater.cli.settings import flag as flag_of
from headwater.cli.settings import variable as variable_of
from headwater.http.descriptors import Descriptors
from headwater.openai import errors
from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.tokenize import DetokenizeRequest, TokenizeRequest
from headwater.resource import ModelDeployment, load
from headwater_engine.config import EngineSettings
from headwater_engine.server.app import EngineApp
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose import pods, startup
from headwater_operator.metrics import OperatorMetrics
from headwater_router.admin.app import make_app
from headwater_router.admin.guard import Guard
from headwater_router.admission import key_file
from headwater_router.app import Router
from headwater_router.config import RouterSettings
from headwater_router.gateway.access_log import AccessRecord
from headwater_router.gateway.metrics import RouterMetrics
from headwater_router.gateway.paths import FORWARDED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

LONGEST_FILE = 450
"""Lines of a Python file: more than one subject has crept in."""
LONGEST_WORKER = 250
"""The file that says what a step does is read from top to bottom."""
LONGER_FILES: dict[str, str] = {}
"""Path to the reason why it may be longer."""

SHORTEST_WAIT = 60
"""Seconds: of tests, for what hangs."""

REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted\.org|huggingface\.co|hf\.co|docker\.io|ghcr\.io|quay\.io|[\w.]*gcr\.io|registry\.k8s\.io"
    r"|npmjs\.org|anaconda\.org|crates\.io"
)
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:wor[k]|tmp/h[w]|home/\w|roo[t])/")


# Reading the repository


@cache
def tracked(pattern: str = "*") -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", f":(glob)**/{pattern}"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def prose(path: Path) -> str:
    """A Markdown file without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def section(path: Path, heading: str) -> str:
    """What stands under `## heading`, up to the next one."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", prose(path), re.MULTILINE | re.DOTALL)
    assert found, f"{name_of(path)} has no section '{heading}'"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows whose first cell is code."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line] for line in lines]


def codes(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def slugs(path: Path) -> set[str]:
    """The anchors that a forge gives to a file's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# docs/configuration.md


def default_text(field: FieldInfo) -> str:
    match field.default:
        case None | []:
            return "–"
        case bool(default):
            return "`on`" if default else "`off`"
        case default if default is PydanticUndefined:
            return "required"
        case default:
            return f"`{default}`"


@pytest.mark.parametrize(
    ("command", "settings", "positional"),
    [("serve", EngineSettings, "model"), ("route", RouterSettings, None), ("operate", OperatorSettings, None)],
)
def test_every_setting_is_documented(command: str, settings: type[BaseSettings], positional: str | None) -> None:
    table = rows(section(DOCS / "configuration.md", f"headwater {command}").partition("\n### ")[0])
    documented = {codes(row[1])[0]: row for row in table if codes(row[1])}
    expected = {variable_of(settings, name): (name, field) for name, field in settings.model_fields.items()}
    missing, gone = expected.keys() - documented.keys(), documented.keys() - expected.keys()
    assert not missing, f"docs/configuration.md, headwater {command}: no row for {', '.join(sorted(missing))}"
    assert not gone, f"docs/configuration.md, headwater {command}: there is no {', '.join(sorted(gone))}"
    for variable, (name, field) in expected.items():
        flags, _, kind, default, _ = documented[variable]
        flag = name.upper() if name == positional else f"--{flag_of(name)}"
        assert codes(flags)[0] == flag, f"docs/configuration.md: {variable} is set by {flag}, not by {flags}"
        assert default == default_text(field), f"docs/configuration.md: {flag} is {default_text(field)}, not {default}"
        if get_origin(field.annotation) is Literal:
            allowed = list(get_args(field.annotation))
            assert codes(kind) == allowed, f"docs/configuration.md: {flag} is one of {allowed}, not of {codes(kind)}"


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "ps",
        "logs",
        "stop",
        "top",
        "status",
        "bench",
        "serve",
        "route",
        "operate",
        "fetch",
        "keys",
        "completion",
        "man",
    ],
)
def test_the_documented_flags_are_those_in_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    in_help = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out.partition("\n\n")[0]))
    text = section(DOCS / "configuration.md", f"headwater {command}").partition("\n### ")[0]
    documented = {flag for row in rows(text) for flag in codes(row[0]) if flag.startswith("--")}
    assert documented == in_help, f"docs/configuration.md, headwater {command}: differs in {documented ^ in_help}"


# docs/metrics.md


def metrics_of(registry: CollectorRegistry) -> set[tuple[str, str, tuple[str, ...]]]:
    """Name on the page, type, and labels of each metric; labels are there although no sample has them yet."""
    return {
        (
            family.name + "_total" * (family.type == "counter"),
            family.type,
            tuple(getattr(collector, "_labelnames", ())),
        )
        for collector in list(registry._collector_to_names)
        for family in collector.collect()
    }


@pytest.mark.parametrize(
    ("heading", "registry"),
    [
        ("Engine", ServerMetrics().registry),
        ("Router", RouterMetrics().registry),
        ("Operator", OperatorMetrics().registry),
    ],
)
def test_every_metric_is_documented(heading: str, registry: CollectorRegistry) -> None:
    table = rows(section(DOCS / "metrics.md", heading)) + rows(section(DOCS / "metrics.md", "All"))
    documented = {(codes(row[0])[0], row[1], tuple(codes(row[2]))) for row in table}
    expected = metrics_of(registry)
    missing, gone = expected - documented, documented - expected
    assert not missing, f"docs/metrics.md, {heading}: no row, or another type or labels, for {sorted(missing)}"
    assert not gone, f"docs/metrics.md, {heading}: there is no {sorted(gone)}"


def test_queries_ask_for_metrics_that_there_are() -> None:
    registries = ServerMetrics().registry, RouterMetrics().registry, OperatorMetrics().registry
    families = [family for registry in registries for family in metrics_of(registry)]
    known = {name + end for name, kind, _ in families for end in ("", "_bucket") if not end or kind == "histogram"}
    queries = "".join(re.findall(r"```promql\n(.*?)```", (DOCS / "metrics.md").read_text(), re.DOTALL))
    unknown = set(re.findall(r"headwater_\w+", queries)) - known
    assert not unknown, f"docs/metrics.md: queries ask for {', '.join(sorted(unknown))}, which there is not"


# docs/resource.md


def fields_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field as a user writes it, such as `spec.adapters[].name`, down to those that hold no further ones."""
    for name, field in model.model_fields.items():
        written = f"{path}{field.alias or name}"
        parts = [
            (part, "[]." if get_origin(field.annotation) is list else ".")
            for part in (field.annotation, *get_args(field.annotation))
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if not parts or parts[0][0] is not field.annotation:
            yield written, field
        for part, separator in parts:
            yield from fields_of(part, written + separator)


def test_every_field_of_the_resource_is_documented() -> None:
    documented = {codes(row[0])[0]: row for row in rows(prose(DOCS / "resource.md"))}
    expected = dict(fields_of(ModelDeployment))
    missing, gone = expected.keys() - documented.keys(), documented.keys() - expected.keys()
    assert not missing, f"docs/resource.md: no row for {', '.join(sorted(missing))}"
    assert not gone, f"docs/resource.md: there is no {', '.join(sorted(gone))}"
    for path, field in expected.items():
        kind, default = documented[path][1:3]
        if field.is_required():
            assert default == "required", f"docs/resource.md: {path} is required, not {default} by default"
        else:
            given = yaml.safe_load(codes(default)[0])
            kept = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            value = TypeAdapter(kept).validate_python(given)
            assert value == field.default, f"docs/resource.md: {path} is {field.default!r} by default, not {default}"
        if get_origin(field.annotation) is Literal:
            allowed = list(get_args(field.annotation))
            assert codes(kind) == allowed, f"docs/resource.md: {path} is one of {allowed}, not of {codes(kind)}"


@pytest.mark.parametrize("path", tracked("examples/*.yaml"), ids=name_of)
def test_every_example_is_valid(path: Path) -> None:
    assert load(path)


# docs/openai-api.md


@pytest.mark.parametrize(
    ("heading", "models"),
    [
        ("Requests", (ChatCompletionRequest, CompletionRequest)),
        ("Tokens", (TokenizeRequest, DetokenizeRequest)),
    ],
)
def test_every_request_field_is_documented(heading: str, models: tuple[type[BaseModel], ...]) -> None:
    documented = {code for row in rows(section(DOCS / "openai-api.md", heading)) for code in codes(row[0])}
    expected = {name for model in models for name in model.model_fields}
    assert documented == expected, f"docs/openai-api.md, {heading}: differs in {sorted(documented ^ expected)}"


async def own_paths() -> set[str]:
    """What a router answers itself."""
    router = Router(RouterSettings(endpoint=["http://127.0.0.1:9"]), Descriptors(1000))
    return set(router.gateway.local)


def test_every_path_is_documented() -> None:
    metrics = ServerMetrics()
    named = {"/v1/models/NAME", "/v1/responses/ID"}
    engine = {*EngineApp(EngineClient(EngineSettings(model="m")), metrics).paths, *named}
    local = {*asyncio.run(own_paths()), *named}
    table = rows(section(DOCS / "openai-api.md", "Paths"))
    documented = {
        where: {codes(row[0])[0] for row in table if row[n] != "–"} for n, where in ((2, "engine"), (3, "router"))
    }
    for where, expected in (("engine", engine), ("router", FORWARDED.keys() | local)):
        differing = documented[where] ^ expected
        assert not differing, f"docs/openai-api.md, Paths, {where}: differs in {sorted(differing)}"


def test_every_path_of_the_admin_port_is_documented() -> None:
    app = make_app(None, None, RouterSettings(), None, Guard(None, loopback=True))
    served = {
        f"{method.upper()} {path.replace('{name}', 'NAME')}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if path.startswith("/admin/")
    }
    documented = {codes(row[0])[0] for row in rows(section(DOCS / "security.md", "Admin port"))}
    assert documented == served, f"docs/security.md, Admin port: differs in {sorted(documented ^ served)}"


def test_every_field_of_keys_and_of_the_access_log_is_documented() -> None:
    for heading, fields in (("Keys", key_file._Entry.model_fields), ("Access log", AccessRecord.__struct_fields__)):
        text = section(DOCS / "security.md", heading).partition("\n### ")[0]
        documented = {code for row in rows(text) for code in codes(row[0])}
        assert documented == set(fields), f"docs/security.md, {heading}: differs in {documented ^ set(fields)}"


def error_codes() -> set[str]:
    """All that the sources give as `code=`."""
    found = set()
    for path in tracked("*.py"):
        if name_of(path).startswith("tests/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code":
                found |= {each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant) and each.value}
    return found


def test_every_error_is_documented() -> None:
    table = rows(section(DOCS / "openai-api.md", "Errors"))
    documented = {code for row in table for code in codes(row[1])}
    differing = documented ^ error_codes()
    assert not differing, f"docs/openai-api.md, Errors: codes differ in {sorted(differing)}"
    statuses = {int(codes(row[0])[0]) for row in table}
    known = {each.status for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "status")}
    unknown = statuses - known
    assert not unknown, f"docs/openai-api.md, Errors: nothing is answered with {sorted(unknown)}"


# Everything that is tracked


@pytest.mark.parametrize("path", tracked("*.md"), ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{name_of(path)}: the link to {link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in slugs(target), f"{name_of(path)}: {link}: there is no such heading"


def test_the_version_is_the_newest_of_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert project["version"] == newest, f"pyproject.toml says {project['version']}, CHANGELOG.md {newest}"
    assert __version__ == newest, f"headwater.__version__ is {__version__}, CHANGELOG.md says {newest}"


@pytest.mark.parametrize(
    ("pattern", "what"), [(REGISTRIES, "the host of a registry"), (MACHINE_PATHS, "a path of somebody's machine")]
)
def test_no_file_names_what_differs_from_place_to_place(pattern: re.Pattern[str], what: str) -> None:
    found = [
        f"{name_of(path)}:{number}: {match[0]}"
        for path in tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found, f"{what} is named in " + ", ".join(found[:10])


def test_no_file_is_too_long_to_read() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in tracked("*.py")}
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE and name not in LONGER_FILES}
    assert not long, f"more than {LONGEST_FILE} lines: {long}; split them, or give a reason in LONGER_FILES"
    worker = "engine/headwater_engine/worker/worker.py"
    assert lengths[worker] <= LONGEST_WORKER, (
        f"{worker}: more than {LONGEST_WORKER} lines; every feature wants one there"
    )
    stale = [name for name in LONGER_FILES if lengths.get(name, 0) <= LONGEST_FILE]
    assert not stale, f"no exception is needed any more for {stale}"


def waits(tree: ast.AST) -> Iterator[tuple[int, float]]:
    """Line and seconds of each wait that ends by itself."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [each.value for each in call.keywords if each.arg == "timeout"]
        given += call.args[:1] if name == "timeout" else call.args[1:2] if name == "wait_for" else []
        for each in given:
            if isinstance(each, ast.Constant) and isinstance(each.value, int | float):
                yield call.lineno, each.value


def test_no_test_fails_since_the_machine_is_busy() -> None:
    """A wait of a test is there for what hangs: a minute at least. Those below a second are for what is to run out."""
    short = [
        f"{name_of(path)}:{line}: {seconds} s"
        for path in tracked("tests/**/*.py")
        for line, seconds in waits(ast.parse(path.read_text()))
        if 1 <= seconds < SHORTEST_WAIT
    ]
    assert not short, f"shorter than a minute: {', '.join(short)}"


# docs/operator.md


def reasons_of_problems() -> set[str]:
    """All reasons that the condition Degraded can have."""
    found = {reason for reason, _ in pods._WAITING.values()}
    found |= {each.reason for each in startup.HELD_UP.values()}
    for path in (path for path in tracked("*.py") if name_of(path).startswith("operator/")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                found |= {each.value for each in node.args[:1] if isinstance(each, ast.Constant)}
    return found


def test_every_reason_of_degraded_says_what_to_do() -> None:
    table = rows(section(DOCS / "operator.md", "Status").partition("Reasons of `Degraded`")[2])
    documented = {codes(row[0])[0]: row[2] for row in table}
    differing = documented.keys() ^ reasons_of_problems()
    assert not differing, f"docs/operator.md, Status: reasons differ in {sorted(differing)}"
    assert all(documented.values()), "docs/operator.md, Status: a reason without advice"
