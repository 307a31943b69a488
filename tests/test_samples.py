"""Every sample of README and docs/ is run, or held to what would read it: none is there that nobody looks at.

Two kinds are held elsewhere: PromQL by tests/test_repository.py, and README's commands, which are run word for word, by
tests/system/test_readme_commands.py.
"""

import ast
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from headwater.cli.program import make_parser
from headwater.cli.settings import read_settings
from headwater.openai.chat import ChatCompletionRequest
from headwater.resource import ModelDeployment
from headwater_engine.config import EngineSettings
from headwater_operator.config import OperatorSettings
from headwater_router.admission import key_file
from headwater_router.config import RouterSettings
from headwater_router.endpoints.endpoint import EndpointSpec
from tests.router.gateway import gateway
from tests.router.upstream import upstream
from tests.samples import ROOT, Sample, commands, curl, samples

CHART: Final = ROOT / "charts" / "headwater"
SETTINGS: Final = {"serve": EngineSettings, "route": RouterSettings, "operate": OperatorSettings}

NOT_RUN: Final = {
    "pip": "it would install from an index",
    "lm_eval": "it loads a data set, and takes hours",
    "kind": "it makes a cluster of containers, which needs Docker; e2e/ has another one",
}
"""Programs whose calls nothing here can look at, and why."""
OF_THE_SYSTEM: Final = {"base64", "python3", "sed"}
"""What a call is piped into, or a variable is filled by."""


# Files


@cache
def schema() -> dict[str, Any]:
    return dict(json.loads((CHART / "values.schema.json").read_text()))


def resource(given: dict[str, Any], _: Path) -> None:
    least = {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"}}
    spec = {"model": {"source": "random:tiny"}} | given["spec"]
    ModelDeployment.model_validate(least | given | {"spec": spec})


def endpoints(given: list[dict[str, Any]], _: Path) -> None:
    assert all(EndpointSpec.of(each) for each in given)


def api_keys(given: dict[str, Any], folder: Path) -> None:
    (folder / "keys.yaml").write_text(yaml.safe_dump(given))
    assert key_file.read_keys(folder / "keys.yaml")


def chart_values(given: dict[str, Any], _: Path) -> None:
    jsonschema.validate(given, schema())


def config_file(given: dict[str, Any], folder: Path) -> None:
    (folder / "serve.yaml").write_text(yaml.safe_dump(given))
    arguments = make_parser("serve").parse_args(["serve", "m", "--config", str(folder / "serve.yaml")])
    assert read_settings(arguments, EngineSettings, positional="model")


def rights(given: dict[str, Any], _: Path) -> None:
    """Those that the chart gives its router."""
    template = (CHART / "templates" / "router-rbac.yaml").read_text()
    chart = yaml.safe_load(template.partition("$rules := `")[2].partition("`")[0])
    assert given["rules"] == chart


KINDS: Final[list[tuple[Callable[[Any], bool], Callable[[Any, Path], None]]]] = [
    (lambda given: isinstance(given, list), endpoints),
    (lambda given: "spec" in given, resource),
    (lambda given: "keys" in given, api_keys),
    (lambda given: "rules" in given, rights),
    (lambda given: given.keys() <= schema()["properties"].keys(), chart_values),
    (lambda given: {name.replace("-", "_") for name in given} <= EngineSettings.model_fields.keys(), config_file),
]
"""What a file is, and what holds it to that."""


@pytest.mark.parametrize("sample", samples("yaml"), ids=str)
def test_a_file_is_read_by_what_it_is_for(sample: Sample, tmp_path: Path) -> None:
    given = yaml.safe_load(sample.text)
    check = next((check for is_one, check in KINDS if is_one(given)), None)
    assert check, "a file of a kind that nothing here reads"
    check(given, tmp_path)


@pytest.mark.parametrize("sample", samples("json"), ids=str)
def test_json_is_json(sample: Sample) -> None:
    assert json.loads(sample.text)


# Programs


def headwater(words: list[str]) -> None:
    command, *_ = words = [word.strip("[]") for word in words[1:]]
    arguments, unknown = make_parser(command).parse_known_args(words)
    assert not unknown
    if (settings := SETTINGS.get(command)) is not None:
        assert read_settings(arguments, settings, positional="model" if command == "serve" else None)


def kubectl(words: list[str]) -> None:
    (crd,) = yaml.safe_load_all((ROOT / "crds/modeldeployments.yaml").read_text())
    names = crd["spec"]["names"]
    ours = {names["plural"], names["singular"], *names["shortNames"]}
    for word in words:
        kind = word.partition("/")[0]
        if kind.startswith(("md", "modeldep")) and "." not in kind:
            assert kind in ours, f"{kind} is no name of the resource"
    for file in _values(words, "--filename", "-f"):
        assert file == "-" or (ROOT / file).exists()


def helm(words: list[str]) -> None:
    assert words[1] in ("install", "uninstall", "test")
    assert words[1] != "install" or (ROOT / words[3] / "Chart.yaml").exists()


def docker(words: list[str]) -> None:
    (file,) = _values(words, "--file")
    text = (ROOT / file).read_text()
    for argument in _values(words, "--build-arg"):
        assert f"ARG {argument.partition('=')[0]}" in text


def make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words[1:] if "=" not in word} <= set(targets)


def ours(words: list[str]) -> None:
    """A program of this repository."""
    assert (ROOT / words[0]).stat().st_mode & 0o111


def sent(words: list[str]) -> None:
    """The test below sends it."""
    assert curl(words).url


CHECKS: Final = {each.__name__: each for each in (headwater, kubectl, helm, docker, make)} | {"curl": sent}


def _values(words: list[str], *flags: str) -> list[str]:
    return [value for flag, value in pairwise(words) if flag in flags]


@pytest.mark.parametrize("sample", samples("sh", "bash", "console"), ids=str)
def test_a_command_is_one_that_its_program_takes(sample: Sample) -> None:
    found = list(commands(sample))
    assert found
    for words in found:
        program = words[0]
        if program not in OF_THE_SYSTEM | NOT_RUN.keys():
            CHECKS.get(program, ours)(words)


async def test_what_curl_sends_is_answered_by_a_gateway() -> None:
    calls = [curl(words) for each in samples("sh", "bash", "console") for words in commands(each) if words[0] == "curl"]
    assert len(calls) >= 5
    async with upstream("smollm2") as engine, gateway(engine) as router:
        for call in calls:
            url = urlsplit(call.url)
            assert url.hostname in ("localhost", "127.0.0.1")
            headers = dict(each.split(": ", 1) for each in call.headers)
            # A gateway has many models, and an engine alone has one, which need not be named.
            body = call.body and {"model": "smollm2"} | json.loads(call.body)
            if url.path.endswith("/chat/completions"):
                assert ChatCompletionRequest.model_validate(body)
            method = "POST" if body else "GET"
            answer = await router.client.request(method, url.path, json=body, headers=headers)
            assert answer.status_code == 200, (call.url, answer.text)


@pytest.mark.parametrize("sample", samples("python"), ids=str)
async def test_a_program_asks_a_gateway(sample: Sample) -> None:
    assert ast.parse(sample.text)
    async with upstream("smollm2") as engine, gateway(engine) as router:
        text = sample.text.replace("localhost:8080", f"127.0.0.1:{router.port}")
        done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", text], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


# All of them


def test_no_sample_is_of_a_kind_that_nothing_looks_at() -> None:
    assert {each.language for each in samples()} <= {"yaml", "json", "sh", "bash", "console", "python", "promql"}


def test_what_cannot_be_looked_at_is_there_and_is_little() -> None:
    called = [words[0] for each in samples("sh", "bash", "console") for words in commands(each)]
    passed = [program for program in called if program in NOT_RUN]
    assert set(passed) == NOT_RUN.keys()
    assert len(passed) <= 5 and len(called) >= 40, (len(passed), len(called))
