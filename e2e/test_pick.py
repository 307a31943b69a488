"""What `headwater pick` prints for the workloads in the docs is taken by the API server, and rendered."""

import contextlib
import io
import re
import shlex
from functools import cache
from typing import Any

import pytest
import yaml

from e2e.harness import ROOT, Object, apply, condition, eventually, find, kubectl
from headwater import cli

PAGE = (ROOT / "docs/choosing.md").read_text()
ROWS = list(re.findall(r"\| `(--model [^`]+)` \| ([^|]+)", PAGE))
"""Flags, and what the page says comes of them."""
LEAST: int = 20
"""Rows that there are, so that a page of another form is noticed."""


@cache
def picked() -> dict[str, Object]:
    """The deployments of all rows, each under a name of its own, since many are of one model."""
    found = {}
    for number, (flags, outcome) in enumerate(ROWS):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(["pick", *shlex.split(flags), "--yaml"])
        assert status == (1 if "refused" in outcome else 0), f"{flags}: {err.getvalue()}"
        for part, document in enumerate(yaml.safe_load_all(out.getvalue())):
            name = f"row-{number}-{part}"
            found[name] = document | {"metadata": {"name": name}}
    return found


def placed(name: str, namespace: str, document: Object) -> Object:
    """Without pods and fetched weights: what is looked at is what the operator makes of it."""
    spec: dict[str, Any] = document["spec"] | {"replicas": 0, "weights": {"cached": False}}
    return document | {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def test_the_page_has_its_rows() -> None:
    assert len(picked()) >= LEAST
    assert any(outcome.startswith("refused") for _, outcome in ROWS)


def test_the_yaml_of_every_workload_in_the_docs_is_accepted(release: None) -> None:
    said = kubectl("apply", "--dry-run=server", "-f", "-", input=yaml.safe_dump_all(picked().values()))
    assert said.count("created (server dry run)") == len(picked())


@pytest.mark.timeout(120)
def test_every_workload_in_the_docs_is_rendered_by_the_operator(release: None, namespace: str) -> None:
    apply(*(placed(name, namespace, document) for name, document in picked().items()))

    def seen() -> dict[str, Object]:
        found = {each["metadata"]["name"]: each for each in find("modeldeployments", namespace)}
        late = [
            name
            for name, each in found.items()
            if each.get("status", {}).get("observedGeneration") != each["metadata"]["generation"]
        ]
        assert not late and found.keys() == picked().keys(), late
        return found

    resources = eventually("the operator has looked at all of them", seen, timeout=60)
    refused = {name: each for name, each in resources.items() if condition(each, "Degraded").get("status") == "True"}
    assert not refused

    def rendered() -> dict[str, Object]:
        made = find("deployments", namespace, "app.kubernetes.io/component=engine")
        found = {each["metadata"]["labels"]["headwater.dev/deployment"]: each for each in made}
        # Groups are made one by one, so without replicas there are none; and an engine is built first.
        wanted = {name for name, each in picked().items() if not _in_groups(each) and not _is_built(each)}
        assert found.keys() >= wanted, wanted - found.keys()
        return found

    for name, made in eventually("pods for all of them", rendered, timeout=60).items():
        container = next(each for each in made["spec"]["template"]["spec"]["containers"] if each["name"] == "engine")
        assert container["command"] and container["image"]
        wanted = picked()[name]["spec"]["resources"]["limits"]
        assert {key: str(value) for key, value in container["resources"]["limits"].items()} == {
            key: str(value) for key, value in wanted.items()
        }


def _in_groups(document: Object) -> bool:
    return bool(document["spec"].get("parallelism", {}).get("nodes", 1) > 1)


def _is_built(document: Object) -> bool:
    return "tensorrt" in document["spec"]["backend"].get("args", [])
