"""Bytes: shapes against published sizes, and what fits where."""

import pytest

from headwater.pick import models, names
from headwater.pick.capabilities import CAPABILITIES
from headwater.pick.memory import kv_token_bytes, weight_bytes
from headwater.pick.reserve import GIB
from headwater.pick.shape import Shape
from headwater.pick.sizing import find_plan
from headwater.pick.workload import Workload, workload

VLLM = CAPABILITIES[0]


def shape(name: str) -> Shape:
    found = models.named(name)
    assert found
    return found


@pytest.mark.parametrize(
    ("name", "quantization", "published"),
    [
        # Sizes of the safetensors files of published checkpoints, in GB.
        ("Llama-3.1-8B", "none", 16.06),
        ("Llama-3.1-8B", "fp8", 9.08),
        ("Llama-3.1-8B", "awq", 5.73),
        ("Llama-3.1-70B", "fp8", 72.7),
        ("Llama-3.1-70B", "awq", 39.8),
        ("SmolLM2-135M", "none", 0.269),
        # As loaded, in logs: their servers pad the experts.
        ("gpt-oss-20b", "mxfp4", 13.47 * GIB / 1e9),
        ("gpt-oss-120b", "mxfp4", 64.38 * GIB / 1e9),
    ],
)
def test_weights_are_as_large_as_published_checkpoints(name: str, quantization: str, published: float) -> None:
    work = workload({"model": name, "quantization": quantization})
    assert weight_bytes(shape(name), work) / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("name", "kib"), [("Llama-3.1-8B", 128), ("Llama-3.1-70B", 320), ("Qwen2.5-7B", 56), ("DeepSeek-R1", 68.625)]
)
def test_a_token_takes_what_its_layers_and_heads_say(name: str, kib: float) -> None:
    assert kv_token_bytes(workload({"model": "8b"}), shape(name), 1) == kib * 1024


def test_a_head_on_several_gpus_is_kept_several_times() -> None:
    work = workload({"model": "8b"})
    qwen, latent = shape("Qwen2.5-7B"), shape("DeepSeek-R1")
    assert kv_token_bytes(work, qwen, 4) == kv_token_bytes(work, qwen, 1)
    assert kv_token_bytes(work, qwen, 8) == 2 * kv_token_bytes(work, qwen, 1)
    assert kv_token_bytes(work, latent, 8) == 8 * kv_token_bytes(work, latent, 1)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "Llama-3.1-8B"),
        ("hf://meta-llama/Llama-3.3-70B-Instruct", "Llama-3.3-70B"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B"),
        ("neuralmagic/Qwen2.5-7B-Instruct-quantized.w8a8", "Qwen2.5-7B"),
        ("file:///models/SmolLM2-135M-Instruct/", "SmolLM2-135M"),
        ("deepseek-ai/DeepSeek-R1-0528", "DeepSeek-R1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "DeepSeek-R1-Distill-Llama-70B"),
        ("Qwen/Qwen2.5-Coder-7B", "Qwen2.5-Coder-7B"),
        ("lab/strange-8B", None),
        ("unsloth/Qwen3-8B-bnb-4bit", "Qwen3-8B"),
        ("lab/Qwen3-32B-GGUF", "Qwen3-32B"),
        ("Qwen/Qwen2.5-14B-Instruct-1M", "Qwen2.5-14B"),
        ("nvidia/Llama-3.3-70B-Instruct-NVFP4", "Llama-3.3-70B"),
    ],
)
def test_a_known_model_is_known_by_its_variants_and_not_by_others(name: str, known: str | None) -> None:
    found = models.named(name)
    assert (found.name if found else None) == known


@pytest.mark.parametrize(
    ("name", "family", "size"),
    [
        ("hf://deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama", 70e9),
        ("hf://lab/dolphin-2.9-13b", None, 13e9),
        ("hf://mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", 56e9),
        ("hf://lab/tiny-350m", None, 350e6),
        ("hf://lab/thing-v2", None, None),
    ],
)
def test_a_name_tells_family_and_size(name: str, family: str | None, size: float | None) -> None:
    assert models.family_in(name) == family
    assert names.size_in(name) == size


def test_a_family_and_a_size_find_the_shape() -> None:
    found = workload({"params": "8b", "family": "llama"}).shape
    assert found
    assert (found.layers, found.kv_heads, found.positions) == (32, 8, None)
    assert not found.estimated


def test_a_size_that_contradicts_the_name_wins() -> None:
    found = workload({"model": "Llama-3.1-8B", "params": "30b"}).shape
    assert found
    assert found.parameters == 30e9
    assert found.estimated


def test_every_known_model_is_found_by_its_repository() -> None:
    for known in models.catalog().values():
        assert known.hub
        assert models.named(known.hub) == known


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen2.5-32B", "Llama-3.1-70B", "Llama-3.1-405B", "Qwen3-14B"])
def test_the_estimated_kv_cache_is_near_and_rather_too_large(name: str) -> None:
    known = shape(name)
    assert 1.0 <= models.estimate(known.parameters).kv_elements / known.kv_elements <= 1.4


def plan_gpus(work: Workload) -> tuple[int, int]:
    assert work.shape
    plan = find_plan(work, work.shape, VLLM)
    assert plan
    return plan.replicas, plan.layout.gpus


def test_as_few_gpus_as_hold_all_requests() -> None:
    work = {"model": "meta-llama/Llama-3.1-70B-Instruct", "input_tokens": 2000, "output_tokens": 300}
    # Two GPUs hold the weights and no whole request; four hold 188, eight that share each layer 565.
    assert plan_gpus(workload(work | {"gpus": 8, "concurrency": 10})) == (1, 4)
    assert plan_gpus(workload(work | {"gpus": 8, "concurrency": 300})) == (2, 4)
    assert plan_gpus(workload(work | {"gpus": 8, "concurrency": 500})) == (1, 8)


def test_gpus_that_cannot_share_the_heads_evenly_are_left_out() -> None:
    # Phi-4 has 10 KV heads: 2 GPUs can share them, 4 cannot.
    work = workload({"model": "microsoft/phi-4", "gpu": "l4", "gpus": 4, "concurrency": 4000})
    assert plan_gpus(work) == (2, 2)


def test_a_wish_for_tensor_parallelism_is_followed() -> None:
    assert plan_gpus(workload({"model": "Llama-3.1-8B", "gpus": 4, "tensor": 4})) == (1, 4)
