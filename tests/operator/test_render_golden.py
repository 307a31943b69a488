"""The pods of every backend are, to the letter, what they were: a new operator restarts no engine.

A file in golden/vN/ is a pod template as render version N makes it. When one no longer fits, running engines would be
restarted by an upgrade of the operator. docs/rendering.md says what to do then. `UPDATE_GOLDEN=1` writes the files that
are missing; one that is there is rewritten only if it is deleted first.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater.backends.base import UnsupportedError
from headwater.resource import ModelDeployment
from headwater_operator.render import CURRENT_RENDER_VERSION, RENDERERS, Context, render_build
from headwater_operator.render.versions import pod_template
from tests.operator.rendering import BACKENDS, WEIGHTS, built, context, deployment

GOLDEN = Path(__file__).parent / "golden"

EVERYTHING: dict[str, Any] = {
    "model": {"revision": "v1", "secretRef": {"name": "hub", "key": "token"}},
    "context": {"maxTokens": 4096},
    "resources": {"limits": {"cpu": 4, "memory": "32Gi"}},
    "loadTimeout": "30m",
    "drainTimeout": "5m",
    "template": {"spec": {"nodeSelector": {"gpu": "h100"}}},
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tensor": {"parallelism": {"tensor": 8}},
    "gpus": {
        "parallelism": {"tensor": 2},
        "resources": {"limits": {"nvidia.com/gpu": 2}},
        "cache": {"fraction": 0.8, "dtype": "fp8"},
    },
    "weights": {"model": {"aliases": []}},
    "adapters": {"adapters": [{"name": "owner/sql", "source": "hf://owner/sql"}]},
    "group": {"parallelism": {"tensor": 16, "nodes": 2}},
    "everything": EVERYTHING,
    "compressed": {"quantization": "fp8", "cache": {"fraction": 0.8, "dtype": "fp8"}},
    "sampling": {"sampling": {"temperature": 0.2, "topP": 0.9, "maxTokens": 512}},
    "offload": {"cache": {"hostGiB": 8.0}},
    "engine": {"backend": {"args": ["--backend", "tensorrt"]}},
}
DEFINED = {
    "headwater": {"plain", "tensor", "gpus", "weights", "group", "everything", "sampling"},
    "vllm": set(CASES) - {"engine", "gpus"},
    "sglang": set(CASES) - {"engine", "gpus", "sampling"},
    "tgi": {"plain", "tensor", "weights", "adapters", "everything", "compressed"},
    "tensorrt-llm": {"plain", "tensor", "weights", "everything", "offload", "engine"},
    "transformers": {"plain", "weights"},
}
"""What each backend can do; the rest it must refuse."""
SINCE = {"sampling": 3, "gpus": 3, "headwater-tensor": 3, "headwater-group": 3}
"""Render versions before these had no such pods."""
REFUSED = [
    (backend, case) for backend in BACKENDS for case in sorted(set(CASES) - {"engine", "gpus"} - DEFINED[backend])
]


def shapes(version: int) -> list[tuple[str, str]]:
    return [
        (backend, case)
        for backend in BACKENDS
        for case in CASES
        if case in DEFINED[backend] and max(SINCE.get(case, 1), SINCE.get(f"{backend}-{case}", 1)) <= version
    ]


def shaped(backend: str, case: str, version: int) -> tuple[ModelDeployment, Context]:
    spec = {key: dict(value) if isinstance(value, dict) else value for key, value in CASES[case].items()}
    wanted = deployment(backend, **spec)
    weights = WEIGHTS if case in ("weights", "everything") else None
    made = context(wanted, version, weights=weights, kv_events=version == 1 or case == "everything")
    return wanted, built(wanted, made) if case == "engine" else made


@pytest.mark.parametrize(
    ("version", "backend", "case"), [(version, *shape) for version in RENDERERS for shape in shapes(version)]
)
def test_a_pod_is_what_it_was(version: int, backend: str, case: str) -> None:
    wanted, made = shaped(backend, case, version)
    group = 0 if wanted.spec.parallelism.nodes > 1 else None
    check(f"v{version}/{backend}-{case}.yaml", pod_template(wanted, made, group), version)


@pytest.mark.parametrize("version", RENDERERS)
def test_a_build_is_what_it_was(version: int) -> None:
    wanted, made = shaped("tensorrt-llm", "engine", version)
    check(f"v{version}/tensorrt-llm-build.yaml", render_build(wanted, made), version)


@pytest.mark.parametrize(("backend", "case"), REFUSED)
def test_what_a_backend_cannot_do_is_refused_before_there_is_a_pod(backend: str, case: str) -> None:
    wanted, made = shaped(backend, case, CURRENT_RENDER_VERSION)
    with pytest.raises(UnsupportedError, match=rf"^m: spec\.\w+.*: the {backend} backend"):
        pod_template(wanted, made, 0 if wanted.spec.parallelism.nodes > 1 else None)


def test_no_golden_file_is_left_over() -> None:
    for version in RENDERERS:
        expected = {f"{backend}-{case}.yaml" for backend, case in shapes(version)} | {"tensorrt-llm-build.yaml"}
        assert {file.name for file in (GOLDEN / f"v{version}").iterdir()} == expected


def check(name: str, rendered: object, version: int) -> None:
    file = GOLDEN / name
    if not file.exists() and os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.dump(rendered, Dumper=_Plain, sort_keys=False, width=120))
    assert file.exists(), f"{name} is missing: UPDATE_GOLDEN=1 writes it"
    assert rendered == yaml.safe_load(file.read_text()), (
        f"{name}: render version {version} no longer makes these pods, so an upgrade of the operator would restart "
        "engines. Leave the version as it is and make a new one (docs/rendering.md). Only if no release has rendered "
        "this version yet, delete the file and write it anew with UPDATE_GOLDEN=1."
    )


class _Plain(yaml.SafeDumper):
    """Without references from one place to another, and with text of several lines as it is."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)
