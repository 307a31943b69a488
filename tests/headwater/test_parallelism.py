"""`spec.parallelism` in each server's own flags, and refused by name where a server has no such way."""

from typing import Any

import pytest
import yaml

from headwater import backends
from headwater.backends.base import Launch, Pod, UnsupportedError
from headwater.resource import ModelDeployment


def launch(server: str, parallelism: dict[str, Any], **spec: Any) -> Launch:
    wanted = ModelDeployment.model_validate(
        {
            "apiVersion": "headwater.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "m"},
            "spec": {"model": {"source": "file:///m"}, "backend": {"type": server}, "parallelism": parallelism} | spec,
        }
    )
    leader = "rank0" if wanted.spec.parallelism.nodes > 1 else None
    return backends.get(server).launch(wanted, Pod("/m", True, 8000, None, 60, leader=leader, engine="/e"))


def after(argv: list[str], *flags: str) -> tuple[str | None, ...]:
    """What stands behind each flag; "" where it is the last one or another one follows; None where it is not there."""
    found = dict(zip(argv, [*argv[1:], ""], strict=True))
    return tuple("" if (value := found.get(flag)) and value.startswith("--") else value for flag in flags)


VLLM = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "--enable-expert-parallel")
SGLANG = ("--tp-size", "--pp-size", "--dp-size", "--enable-dp-attention", "--ep-size")
TENSORRT = ("--tp_size", "--pp_size", "--ep_size")


@pytest.mark.parametrize(
    ("backend", "flags", "parallelism", "values"),
    [
        ("vllm", VLLM, {"tensor": 8}, ("8", None, None, None)),
        ("vllm", VLLM, {"tensor": 8, "pipeline": 2}, ("8", "2", None, None)),
        ("vllm", VLLM, {"data": 8, "expert": True}, ("1", None, "8", "")),
        ("sglang", SGLANG, {"tensor": 8}, ("8", None, None, None, None)),
        ("sglang", SGLANG, {"tensor": 8, "pipeline": 2}, ("8", "2", None, None, None)),
        ("sglang", SGLANG, {"tensor": 2, "data": 4, "expert": True}, ("8", None, "4", "", "8")),
        ("tensorrt-llm", TENSORRT, {"tensor": 4, "pipeline": 2}, ("4", "2", None)),
        ("tensorrt-llm", TENSORRT, {"data": 8, "expert": True}, ("8", None, "8")),
    ],
)
def test_a_server_is_told_how_its_gpus_share_the_model(
    backend: str, flags: tuple[str, ...], parallelism: dict[str, Any], values: tuple[str | None, ...]
) -> None:
    assert after(launch(backend, parallelism).argv, *flags) == values


def test_tensorrt_is_told_of_attention_apart_in_its_file() -> None:
    for data in (1, 8):
        (text,) = launch("tensorrt-llm", {"data": data}).files.values()
        assert yaml.safe_load(text).get("enable_attention_dp", False) == (data > 1)


def test_vllms_layers_are_spread_over_nodes_and_stages_follow_them() -> None:
    made = launch("vllm", {"tensor": 8, "pipeline": 2, "nodes": 2})
    assert after(made.argv, "--nnodes", "--pipeline-parallel-size") == ("2", "2")
    assert [yaml.safe_load(text) for text in made.files.values()] == [{"headless": False}, {"headless": True}]


def test_vllms_groups_are_dealt_out_to_the_nodes() -> None:
    made = launch("vllm", {"data": 16, "expert": True, "nodes": 2})
    flags = ("--nnodes", "--data-parallel-size-local", "--data-parallel-address", "--data-parallel-rpc-port")
    assert after(made.argv, *flags) == (None, "8", "rank0", "29502")
    ranks = [yaml.safe_load(text) for text in made.files.values()]
    assert ranks == [{"headless": False}, {"headless": True, "data-parallel-start-rank": 8}]


def test_sglangs_nodes_hold_whatever_there_is() -> None:
    argv = launch("sglang", {"tensor": 2, "data": 8, "nodes": 2}).argv
    assert after(argv, "--nnodes", "--tp-size", "--dp-size") == ("2", "16", "8")


@pytest.mark.parametrize("backend", ["headwater", "tgi", "transformers"])
@pytest.mark.parametrize(("field", "value"), [("pipeline", 2), ("data", 2), ("expert", True)])
def test_a_server_without_it_refuses_it_by_name(backend: str, field: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=rf"^m: spec\.parallelism\.{field}: the {backend} backend knows only"):
        launch(backend, {field: value})


@pytest.mark.parametrize(
    ("backend", "parallelism", "spec", "message"),
    [
        (
            "vllm",
            {"tensor": 2, "data": 3, "nodes": 2},
            {},
            "spec.parallelism.data: the vllm backend has as many groups",
        ),
        (
            "tensorrt-llm",
            {"tensor": 2, "data": 2},
            {},
            "spec.parallelism.tensor: the tensorrt-llm backend knows only 1",
        ),
        (
            "tensorrt-llm",
            {"pipeline": 2},
            {"backend": {"type": "tensorrt-llm", "args": ["--backend", "tensorrt"]}},
            "spec.parallelism.pipeline: the tensorrt-llm backend knows only 1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    backend: str, parallelism: dict[str, Any], spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        launch(backend, parallelism, **spec)
