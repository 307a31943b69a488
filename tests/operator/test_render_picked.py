"""What `headwater pick` prints for each workload of docs/choosing.md is rendered by the operator."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from headwater import cli
from headwater.resource import ModelDeployment
from headwater_operator.render import render, render_group
from tests.operator.rendering import WEIGHTS, built, context, engine

PAGE = (Path(__file__).parents[2] / "docs/choosing.md").read_text()
COMMANDS = [row.group(1) for row in re.finditer(r"`(--model [^`]+)` \| (?!refused)", PAGE)]


@pytest.mark.parametrize("flags", COMMANDS)
def test_a_picked_deployment_is_rendered_with_a_command_and_its_accelerators(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pick", *shlex.split(flags), "--yaml"]) == 0
    for document in yaml.safe_load_all(capsys.readouterr().out):
        wanted = ModelDeployment.model_validate(document)
        weights = WEIGHTS if wanted.spec.weights.cached else None
        made = built(wanted, context(wanted, weights=weights))
        several = wanted.spec.parallelism.nodes > 1
        manifests = [render_group(wanted, made, 0)] if several else render(wanted, made)
        pods = [each["spec"]["template"] for each in manifests if "template" in each.get("spec", {})]
        containers = [engine(pod) for pod in pods if any(c["name"] == "engine" for c in pod["spec"]["containers"])]
        assert containers
        for container in containers:
            assert container["command"]
            assert container["resources"].get("limits") == wanted.spec.resources["limits"]
