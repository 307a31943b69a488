"""No flag that fields or we ourselves set may be given in `spec.backend.args`: all golden pods, all servers."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater import backends
from headwater.backends.base import Pod, UnsupportedError
from headwater.resource import ModelDeployment, load
from headwater_operator.render import RENDERERS
from headwater_operator.render.versions import pod_template
from tests.headwater.test_launchers import FIXTURES, MOST, PLAIN, known_flags
from tests.operator.rendering import BACKENDS, deployment, engine
from tests.operator.test_render_golden import shaped, shapes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "backends.md"
PARALLEL: dict[str, list[dict[str, Any]]] = {
    "vllm": [{"data": 4, "nodes": 2, "expert": True}, {"tensor": 2, "pipeline": 2}],
    "sglang": [{"data": 4, "nodes": 2, "expert": True}, {"tensor": 2, "pipeline": 2}],
    "tensorrt-llm": [{"data": 4, "expert": True}, {"tensor": 2, "pipeline": 2}],
}
"""What no golden case asks for."""
ASKED = {"context": {"maxTokens": 9}, "quantization": "fp8", "cache": {"fraction": 0.5, "dtype": "fp8", "hostGiB": 1}}


def flags_of(argv: list[str]) -> set[str]:
    return {each.partition("=")[0].replace("_", "-") for each in argv if re.match("--[a-z]", each)}


@cache
def written(backend: str) -> frozenset[str]:
    """All flags that a server is started with, less those of the arguments."""
    flags: set[str] = set()
    for version in RENDERERS:
        for _, case in filter(lambda shape: shape[0] == backend, shapes(version)):
            wanted, made = shaped(backend, case, version)
            container = engine(pod_template(wanted, made, 0 if wanted.spec.parallelism.nodes > 1 else None))
            flags |= flags_of(container["command"] + container.get("args", [])) - flags_of(wanted.spec.backend.args)
    for parallelism in PARALLEL.get(backend, []):
        more = {} if backend == "tensorrt-llm" else ASKED
        wanted = deployment(backend, parallelism=parallelism, **more)
        leader = "leader" if wanted.spec.parallelism.nodes > 1 else None
        pod = Pod("hf://o/m", False, 8000, 5557, 60, leader=leader, admin_key=True, replay_port=5757, guarded=True)
        flags |= flags_of(backends.get(backend).launch(wanted, pod).argv)
    return frozenset(flags | flags_of(backends.get(backend).command(deployment(backend), port=1)))


def refused(backend: str, argument: str) -> bool:
    try:
        backends.get(backend).refuse_own_flags(deployment(backend, backend={"args": [argument, "1"]}))
    except UnsupportedError:
        return True
    return False


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_flag_that_we_write_may_be_given_in_arguments(backend: str) -> None:
    """A new one needs a word in `own_flags` of its backend, or in `free_flags`."""
    assert len(written(backend)) >= 2
    server = backends.get(backend)
    assert {flag for flag in written(backend) if not refused(backend, flag)} == server.free_flags.keys()
    assert all(reason for reason in server.free_flags.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_other_form_of_a_flag_passes(backend: str) -> None:
    for flag in backends.get(backend).own_flags:
        forms = [flag, f"{flag}=1", flag.replace("-", "_").replace("_", "-", 2 if flag.startswith("--") else 1)]
        if flag.startswith("--"):
            forms += [flag[:-1], f"--no-{flag[2:]}", f"{flag}.key"]
        if len(flag) == 2:
            forms.append(f"{flag}1")
        assert [form for form in forms if not refused(backend, form)] == []


@pytest.mark.parametrize("folder", [*MOST, PLAIN[0]])
def test_no_other_flag_of_a_server_is_taken_for_the_beginning_of_one_that_is_refused(folder: str) -> None:
    backend = folder.partition("-")[0]
    own = backends.get(backend).own_flags
    others = {flag for flag in known_flags(folder) if flag.startswith("-")} - own.keys()
    assert {flag for flag in others if refused(backend, flag)} <= {f"--no-{flag[2:]}" for flag in own}
    assert (FIXTURES / folder).is_dir() and len(others) > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_to_use_instead_is_a_field_that_there_is(backend: str) -> None:
    for flag, instead in backends.get(backend).own_flags.items():
        fields = re.findall(r"\b(?:spec|metadata)\.[\w.]+", instead)
        assert fields or instead.startswith(("Headwater, ", "the operator, ")), flag
        for path in fields:
            model: Any = ModelDeployment
            for part in path.split("."):
                field = next(each for name, each in model.model_fields.items() if (each.alias or name) == part)
                model = field.annotation


@pytest.mark.parametrize(
    ("backend", "argument"),
    [
        ("vllm", "--prefill-context-parallel-size"),
        ("vllm", "-pcp=2"),
        ("vllm", "--max-num-seqs"),
        ("vllm", "-O3"),
        ("vllm", "model_port"),
        ("vllm", "-1"),
        ("vllm", "--"),
        ("sglang", "--page-size"),
        ("sglang", "--tool-call-parser"),
        ("tensorrt-llm", "--cp_size"),
        ("tensorrt-llm", "--backend"),
        ("tensorrt-llm", "--max_batch_size"),
        ("sglang", "--max-running-requests"),
        ("tgi", "--max-concurrent-requests"),
        ("headwater", "--kv-cache-gib"),
        ("headwater", "--max-num-seqs"),
        ("headwater", "--no-such-flag"),
    ],
)
def test_what_no_field_says_is_the_arguments_matter(backend: str, argument: str) -> None:
    """Some of them make use of more GPUs than the fields of `spec.parallelism` say, which GPUS_ARE_USED lets them."""
    assert not refused(backend, argument)


def test_the_docs_name_what_may_be_given_though_we_write_it() -> None:
    docs = DOCS.read_text()
    for backend in BACKENDS:
        assert [flag for flag in backends.get(backend).free_flags if f"`{flag}`" not in docs] == []


def test_what_docs_and_examples_give_is_not_refused() -> None:
    pages = " ".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    told = [yaml.safe_load(args) for args in re.findall(r"`?(?:backend\.)?args: (\[-[^\]]*\])", pages)]
    assert len(told) >= 4
    for backend in BACKENDS:
        assert [args for args in told if any(refused(backend, argument) for argument in args)] == []
    for path in (ROOT / "examples").glob("*.yaml"):
        for each in load(path):
            backends.get(each.spec.backend.type).refuse_own_flags(each)
