"""What pick writes starts: each document passes the resource's rules, has an image, and its backend takes it."""

import re
from dataclasses import replace

import pytest
import yaml

from headwater import backends
from headwater.backends.base import Pod
from headwater.pick import ImpossibleError, Pick, WorkloadError, pick
from headwater.pick.choice import Part
from headwater.pick.hardware import ACCELERATORS
from headwater.pick.render import Dumper, missing, to_yaml
from headwater.pick.workload import workload
from headwater.resource import ModelDeployment

MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
    "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
    "nvidia/Llama-3.3-70B-Instruct-NVFP4",
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    "Qwen/Qwen3-235B-A22B-FP8",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
    "deepseek-ai/DeepSeek-V3.2",
    "openai/gpt-oss-20b",
    "google/gemma-3-27b-it",
    "Qwen/Qwen3-Embedding-0.6B",
    "lab/odd-3b",
)
TRAFFIC = (
    {},
    {"quantization": "fp8"},
    {"kv_dtype": "fp8", "fraction": 0.95, "sequences": 16},
    {"adapters": 3, "agentic": True},
    {"sampling": True, "host_cache_gib": 32.0},
    {"build_time": "40m"},
)


def written(found: Pick) -> list[ModelDeployment]:
    """The documents of each backend that has a place, not only of the first."""
    documents = []
    for place in found.places:
        if place.plan is None:
            continue
        own = replace(found, parts=(Part(place, place.plan, found.workload, 100, ""),))
        if lack := missing(own):
            said = re.match(r"--(image|registry): must say", lack)
            assert said, "what has to be set"
            own_work = found.workload.model_copy(update={said[1]: "mirror.internal"})
            own = replace(own, workload=own_work, parts=(Part(place, place.plan, own_work, 100, ""),))
            assert missing(own) is None, "and no more than that"
        documents += [ModelDeployment.model_validate(each) for each in yaml.safe_load_all(to_yaml(own))]
    return documents


@pytest.mark.parametrize("gpu", ["cpu", "l4", "a100-80", "h100", "h200", "b200", "mi300x", "h100-2g.20gb", "gaudi3"])
def test_every_document_that_can_be_written_starts(gpu: str) -> None:
    made = 0
    for model in MODELS:
        for traffic in TRAFFIC:
            try:
                found = pick(workload({"model": model, "gpu": gpu, "gpus": 8, "concurrency": 8} | traffic))
            except (ImpossibleError, WorkloadError):
                continue
            for deployment in written(found):
                server = backends.get(deployment.spec.backend.type)
                own = server.image if "cpu" not in gpu and "mi" not in gpu else None
                assert deployment.spec.backend.image or own or server.name == "headwater"
                leader = "leader" if deployment.spec.parallelism.nodes > 1 else None
                cached = deployment.spec.weights.cached
                source = "/models/m" if cached else deployment.spec.model.source
                pod = Pod(source, cached, 8000, None, 60, leader=leader, engine="/engine")
                assert server.launch(deployment, pod).argv
                made += 1
    assert made


def test_a_quantized_checkpoint_names_its_own_method() -> None:
    for model in ("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "Qwen/Qwen3-32B-FP8", "openai/gpt-oss-20b"):
        (made,) = written(pick(workload({"model": model})))[:1]
        assert made.spec.quantization == "none", "an explicit one would choose a slower kernel, or stop the server"
    (made,) = written(pick(workload({"model": "Qwen/Qwen3-32B", "quantization": "fp8"})))[:1]
    assert made.spec.quantization == "fp8"


@pytest.mark.parametrize(
    ("gpu", "backend", "image"),
    [
        ("h100", "vllm", ""),
        ("h100", "sglang", ""),
        ("h100", "tensorrt-llm", "mirror.internal/nvidia/tensorrt-llm/release:"),
        ("h100", "tgi", "mirror.internal/huggingface/text-generation-inference:"),
        ("h100", "transformers", "mirror.internal/headwater-transformers:"),
        ("mi300x", "vllm", "vllm/vllm-openai-rocm:v"),
        ("mi300x", "sglang", "lmsysorg/sglang:v0.5.18-rocm700-mi30x"),
        ("mi355x", "sglang", "lmsysorg/sglang-rocm:v0.5.17-rocm720-mi35x"),
        ("mi300x", "tgi", "mirror.internal/huggingface/text-generation-inference:3.3.5-rocm"),
        ("mi300x", "transformers", "mirror.internal/headwater-transformers:5.24.0-rocm"),
        ("cpu", "vllm", "vllm/vllm-openai-cpu:v"),
        ("cpu", "transformers", "mirror.internal/headwater-transformers:5.24.0"),
    ],
)
def test_an_image_is_pinned_for_each_backend_on_each_kind_of_device(gpu: str, backend: str, image: str) -> None:
    work = {"model": "Qwen/Qwen3-0.6B", "gpu": gpu, "concurrency": 4, "registry": "mirror.internal"}
    (made,) = (each for each in written(pick(workload(work))) if each.spec.backend.type == backend)
    assert (made.spec.backend.image or "").startswith(image)
    assert bool(made.spec.backend.image) == bool(image), "what the operator has itself is left to it"


def test_what_is_at_another_registry_is_refused_with_what_to_say() -> None:
    found = pick(workload({"model": "Qwen/Qwen3-0.6B", "hugging_face": True}))
    with pytest.raises(
        WorkloadError, match=r"--registry: must say where huggingface/text-generation-inference:3\.3\.7 is"
    ):
        to_yaml(found)


def test_a_slice_of_a_gpu_is_asked_for_by_its_name() -> None:
    found = pick(workload({"model": "Qwen/Qwen3-0.6B", "gpu": "H100-1g.10gb", "gpus": 2, "concurrency": 4}))
    assert written(found)[0].spec.resources == {"limits": {"nvidia.com/mig-1g.10gb": 1}}


def test_nodes_are_chosen_by_their_labels() -> None:
    label = "nvidia.com/gpu.product=NVIDIA-L4"
    (made,) = written(pick(workload({"model": "Qwen/Qwen3-0.6B", "gpu": "l4", "node_selector": label})))[:1]
    assert made.spec.template == {"spec": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}}}
    with pytest.raises(WorkloadError, match="--node-selector: must be labels"):
        workload({"model": "8b", "node_selector": "l4"})


@pytest.mark.parametrize("name", [each for each in ACCELERATORS if each != "cpu"])
def test_a_small_model_has_a_place_on_every_accelerator(name: str) -> None:
    found = pick(workload({"model": "Qwen/Qwen3-0.6B", "gpu": name.upper(), "concurrency": 4}))
    assert found.places[0].backend == "vllm"
    assert found.workload.accelerator.resource


@pytest.mark.parametrize("text", ["1e5", "9185857692e8", ".5e3", "08", "0o17", "y", "N"])
def test_a_text_stays_one_for_every_reader(text: str) -> None:
    """Go's readers of YAML take more for numbers than PyYAML does, which would leave these without quotes."""
    written = yaml.dump({"name": text, "count": 8, "share": 0.5}, Dumper=Dumper, sort_keys=False)
    assert written == f"name: '{text}'\ncount: 8\nshare: 0.5\n"
