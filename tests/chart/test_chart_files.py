"""What the chart holds agrees with what it is about: the CRD, the programs' settings, their metrics, its own docs.

Whether helm and an API server take it is tried in e2e/test_chart.py.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings

from charts.schema import OF_THE_CHART, complete
from headwater_engine.server.metrics import ServerMetrics
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics
from headwater_router.config import RouterSettings
from headwater_router.gateway.metrics import RouterMetrics

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "headwater"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

WHOLE = {"resources", "labels"}
"""Values that are documented in one row, whatever is in them."""


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in WHOLE:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def rows() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "chart.md").read_text()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    return {row[0].strip("`"): row for row in found}


def test_the_charts_crds_are_those_of_the_repository() -> None:
    ours = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    charts = {path.name: path.read_text() for path in (CHART / "files" / "crds").glob("*.yaml")}
    assert ours
    assert charts == ours


def test_a_crd_has_the_line_that_the_keep_policy_is_put_behind() -> None:
    for path in (ROOT / "crds").glob("*.yaml"):
        assert path.read_text().count("\nmetadata:\n  name:") == 1, f"templates/crds.yaml cannot handle {path.name}"


def test_the_schema_knows_the_settings_of_the_programs() -> None:
    assert complete(json.loads(json.dumps(SCHEMA))) == SCHEMA, "run: python -m charts.schema"


@pytest.mark.parametrize("settings", [OperatorSettings, RouterSettings])
def test_what_the_chart_sets_is_a_setting(settings: type[BaseSettings]) -> None:
    """A variable that a program does not know is passed over in silence, and a port or a key with it."""
    templates = "".join(path.read_text() for path in (CHART / "templates").glob("*.*"))
    prefix = settings.model_config["env_prefix"]
    set_by_it = {name.lower() for name in re.findall(rf"{prefix}([A-Z_]+)", templates)}
    assert set_by_it
    assert set_by_it | OF_THE_CHART[settings] <= settings.model_fields.keys()


def test_a_url_with_a_password_comes_from_a_secret_only() -> None:
    assert "redis_url" not in SCHEMA["properties"]["router"]["properties"]["settings"]["properties"]
    assert not {"url", "password"} & SCHEMA["properties"]["redis"]["properties"].keys()


@pytest.mark.parametrize("path", [path for path, _ in leaves(VALUES)])
def test_the_schema_knows_every_value(path: str) -> None:
    node = SCHEMA
    for part in path.split("."):
        if "$ref" in node:
            node = SCHEMA["definitions"][node["$ref"].rpartition("/")[2]]
        assert part in node["properties"], f"values.schema.json: no {path}"
        assert node["additionalProperties"] is False
        node = node["properties"][part]


def test_every_value_is_documented_with_its_default() -> None:
    documented = rows()
    expected = dict(leaves(VALUES))
    assert documented.keys() == expected.keys(), f"docs/chart.md: differs in {documented.keys() ^ expected.keys()}"
    for path, value in expected.items():
        default = yaml.safe_load(documented[path][1].strip("`"))
        assert default == value, f"docs/chart.md: {path} is {value!r} by default, not {default!r}"


def test_the_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (chart["version"], chart["appVersion"]) == (project["version"], project["version"])


def samples_of(registry: CollectorRegistry) -> set[str]:
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    families = [family for collector in list(registry._collector_to_names) for family in collector.collect()]
    return {family.name + end for family in families for end in ends.get(family.type, ("",))}


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    known: set[str] = set()
    for metrics in (ServerMetrics(), RouterMetrics(), OperatorMetrics()):
        known |= samples_of(metrics.registry)
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    unknown = set(re.findall(r"headwater_\w+", " ".join(queries))) - known
    assert queries
    assert not unknown, f"dashboard.json asks for {sorted(unknown)}, which there is not"


def test_a_link_in_the_chart_leads_into_the_repository() -> None:
    links = [path for path in CHART.rglob("*") if path.is_symlink()]
    assert [path.relative_to(CHART).as_posix() for path in links] == ["files/crds"]
    assert all(path.resolve().is_relative_to(ROOT) and not path.readlink().is_absolute() for path in links)


def test_the_alerts_ask_for_metrics_that_there_are() -> None:
    known: set[str] = set()
    for metrics in (RouterMetrics(), OperatorMetrics()):
        known |= samples_of(metrics.registry)
    groups = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    rules = [rule for group in groups for rule in group["rules"]]
    unknown = set(re.findall(r"headwater_\w+", " ".join(rule["expr"] for rule in rules))) - known
    assert not unknown, f"rules.yaml asks for {sorted(unknown)}, which there is not"
    documented = set(re.findall(r"^\| (Headwater\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert documented == {rule["alert"] for rule in rules}


# Tenants


def section(page: str, heading: str) -> str:
    return (ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_policy_looks_at_all_that_the_docs_say_it_refuses() -> None:
    """e2e/test_chart.py tries it on an API server."""
    policy = (CHART / "templates" / "policy.yaml").read_text()
    table = [line for line in section("security.md", "Teams on one cluster").splitlines() if line.startswith("| ")][1:]
    named = {word.partition(":")[0] for line in table for word in re.findall(r"`([A-Za-z]+)[`:]", line)} - {"default"}
    assert {"hostNetwork", "hostPath", "serviceAccountName", "privileged"} <= named
    assert not {field for field in named if field not in policy}


def test_people_get_no_right_that_only_the_operator_may_have() -> None:
    roles = (CHART / "templates" / "user-roles.yaml").read_text()
    edit = roles.partition("-edit\n")[2]
    assert "aggregate-to-view" in roles and "aggregate-to-edit" in edit and "aggregate-to-admin" in edit
    assert "modeldeployments/status" not in edit, "names are kept there"
