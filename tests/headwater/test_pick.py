"""The ranking: each rule, and what holds of all workloads."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headwater.backends import get
from headwater.backends.base import UnsupportedError
from headwater.pick import ImpossibleError, Pick, Workload, WorkloadError, pick
from headwater.pick.capabilities import CAPABILITIES
from headwater.pick.choice import change
from headwater.pick.hardware import ACCELERATORS
from headwater.pick.models import catalog
from headwater.pick.ranking import Ranking, rank
from headwater.pick.render import missing, to_yaml
from headwater.pick.workload import workload
from headwater.resource import ModelDeployment

DOCS = Path(__file__).parents[2] / "docs"
PREFIX_BACKENDS = {able.backend for able in CAPABILITIES if "prefix" in able.strengths}
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"

MODELS = [f"hf://{shape.hub}" for shape in catalog().values()]
models = st.sampled_from([*MODELS, "hf://lab/odd-3b", "s3://bucket/new-40b"])
workloads = st.builds(
    lambda minutes, **values: workload(values | {"build_time": f"{minutes}m"}),
    minutes=st.sampled_from([0, 10, 30, 90]),
    model=models,
    gpu=st.sampled_from(list(ACCELERATORS)),
    gpus=st.sampled_from([1, 2, 3, 4, 8, 16, 64]),
    concurrency=st.integers(1, 3000),
    input_tokens=st.integers(1, 20_000),
    output_tokens=st.integers(1, 4000),
    shared_prefix=st.floats(0, 1),
    agentic=st.booleans(),
    structured=st.booleans(),
    sampling=st.booleans(),
    mixed=st.booleans(),
    broad_models=st.booleans(),
    hugging_face=st.booleans(),
    adapters=st.sampled_from([0, 0, 3]),
    quantization=st.sampled_from([None, "none", "fp8", "awq", "gptq"]),
    kv_dtype=st.sampled_from(["auto", "auto", "fp8"]),
    image=st.just("lab/server:1"),
    host_cache_gib=st.sampled_from([0.0, 64.0]),
)


def picked(work: Workload) -> Pick:
    try:
        return pick(work)
    except (ImpossibleError, WorkloadError):  # the latter: what such a checkpoint cannot be
        assume(False)
        raise


def places(**values: Any) -> list[str]:
    return [each.backend for each in pick(workload({"model": LLAMA} | values)).places]


# Rules


def test_vllm_is_the_default() -> None:
    assert places()[0] == "vllm"


@pytest.mark.parametrize("traffic", [{"shared_prefix": 0.8}, {"agentic": True}, {"structured": True}])
def test_sglang_takes_prefixes_agents_and_schemas_on_gpus(traffic: dict[str, Any]) -> None:
    assert places(**traffic)[:2] == ["sglang", "vllm"]


def test_a_share_of_a_short_prompt_is_no_heavy_prefix() -> None:
    assert places(shared_prefix=0.8, input_tokens=100)[0] == "vllm"


def test_our_engine_comes_first_on_cpus_as_long_as_it_can_serve() -> None:
    assert places(gpu="cpu")[0] == "headwater"
    assert places(gpu="cpu", shared_prefix=0.8)[0] == "headwater"
    assert places(gpu="cpu", structured=True) == ["headwater", "vllm"]
    assert places(gpu="cpu", adapters=1) == ["vllm"]


def test_our_engine_has_a_place_on_nvidia_gpus_and_no_rule_speaks_for_it_there() -> None:
    assert places() == ["vllm", "sglang", "tensorrt-llm", "tgi", "headwater", "transformers"]
    assert places(shared_prefix=0.8)[:2] == ["sglang", "vllm"]
    assert "headwater" in places(model="meta-llama/Llama-3.1-70B-Instruct", gpus=4)
    assert "headwater" in places(model="google/gemma-2-9b-it")
    assert "headwater" in places(kv_dtype="fp8", gpu="l4", gpus=2)
    for more in ({"quantization": "fp8"}, {"adapters": 1}, {"gpu": "t4"}, {"gpu": "mi300x"}):
        assert "headwater" not in places(**more, gpus=2)
    for gpu, title in (("a10", "A10"), ("cpu", "CPU")):
        ranking = rank(workload({"model": LLAMA, "kv_dtype": "fp8", "gpu": gpu}))
        (ours,) = (each for each in ranking.excluded if each.backend == "headwater")
        assert f"keeps no KV cache in FP8 on {title}" in ours.obstacles


def test_a_model_is_spread_over_cpus_where_that_is_asked_for() -> None:
    work = {"model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "cpu", "gpus": 4, "concurrency": 8}
    assert pick(workload(work)).parts[0].plan.layout.gpus == 1
    result = pick(workload(work | {"tensor": 2}))
    assert [each.backend for each in result.places] == ["headwater"]
    (made,) = (ModelDeployment.model_validate(each) for each in yaml.safe_load_all(to_yaml(result)))
    assert (made.spec.parallelism.tensor, made.spec.parallelism.nodes) == (2, 2), "a machine each"
    whole = ModelDeployment.model_validate(yaml.safe_load(to_yaml(pick(workload(work)))))
    memory = [int(each.spec.resources["limits"]["memory"].removesuffix("Gi")) for each in (made, whole)]
    assert memory[0] < memory[1], "each holds half of the weights"


def test_our_engine_on_gpus_runs_as_many_requests_as_it_is_there_for() -> None:
    result = pick(workload({"model": "random:{}", "params": "8b", "family": "llama", "concurrency": 100}))
    assert result.backend == "headwater", "nobody else has random weights"
    made = ModelDeployment.model_validate(yaml.safe_load(to_yaml(result)))
    assert made.spec.backend.args == ["--max-num-seqs", "100"]
    assert made.spec.resources == {"limits": {"nvidia.com/gpu": 1}}


def test_tensorrt_needs_hopper_or_newer_and_is_first_where_there_is_time_to_build() -> None:
    assert places(build_time="40m")[0] == "tensorrt-llm"
    assert places(build_time="20m").index("tensorrt-llm") == 2, "its PyTorch backend builds nothing"
    assert "tensorrt-llm" not in places(build_time="40m", gpu="a100-80")
    assert "tensorrt-llm" not in places(build_time="40m", gpu="mi300x")


def test_shared_prefixes_come_before_peak_and_peak_before_the_default() -> None:
    assert places(build_time="40m", shared_prefix=0.9)[:3] == ["sglang", "tensorrt-llm", "vllm"]


def test_hugging_face_shops_get_tgi() -> None:
    assert places(hugging_face=True)[0] == "tgi"


def test_transformers_is_for_whatever_model_comes_where_one_gpu_will_do() -> None:
    assert places(model="hf://lab/strange-3b", broad_models=True)[0] == "transformers"
    assert "transformers" not in places(model="meta-llama/Llama-3.1-70B-Instruct", broad_models=True, gpus=4)


def test_mixed_traffic_gets_two_deployments_behind_one_name() -> None:
    result = pick(workload({"model": LLAMA, "gpus": 4, "mixed": True, "shared_prefix": 0.8, "shared_requests": 0.3}))
    assert [(part.candidate.backend, part.weight) for part in result.parts] == [("sglang", 30), ("vllm", 70)]
    first, second = (ModelDeployment.model_validate(each) for each in yaml.safe_load_all(to_yaml(result)))
    assert first.spec.model.aliases == second.spec.model.aliases == ["llama-3-1-8b-instruct"]
    assert {first.name, second.name} == {"llama-3-1-8b-instruct-prefix", "llama-3-1-8b-instruct-plain"}
    assert {each.spec.routing.share for each in (first, second)} == {"Auto"}
    assert any("two deployments serve one name" in note for note in result.notes)


def test_mixed_traffic_on_too_few_gpus_gets_one_deployment_and_says_so() -> None:
    result = pick(workload({"model": LLAMA, "gpus": 1, "mixed": True}))
    assert len(result.parts) == 1
    assert any("do not suffice for two" in note for note in result.notes)


def test_our_engines_advantage_on_cpus_is_the_one_that_was_measured() -> None:
    reason = pick(workload({"model": LLAMA, "gpu": "cpu"})).places[0].reason
    table = (DOCS / "performance.md").read_text().partition("| concurrent |")[2].partition("\n\n")[0]
    ratios = [float(row.split("|")[4]) for row in table.splitlines()[2:]]
    claimed = re.findall(r"\d\.\d+", reason)
    assert claimed == [f"{min(ratios):.2f}", f"{max(ratios):.2f}"], "docs/performance.md has other figures now"


# Capabilities


@pytest.mark.parametrize("name", ["headwater", "vllm", "transformers"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization", "fp8"),
        ("adapters", [{"name": "a", "source": "hf://o/a"}]),
        ("parallelism", {"tensor": 2}),
        ("cache", {"hostGiB": 8.0}),
    ],
)
def test_no_backend_is_said_to_do_what_it_refuses(name: str, field: str, value: Any) -> None:
    able = next(each for each in CAPABILITIES if each.backend == name)
    claims = {
        "quantization": any("fp8" in each for each in able.quantizations.values()),
        "adapters": able.adapters,
        "parallelism": bool(able.tensor),
        "cache": able.host_cache,
    }
    spec = {"model": {"source": "hf://o/n", "aliases": ["o/n"]}, field: value}
    deployment = ModelDeployment.model_validate(
        {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"}, "spec": spec}
    )
    try:
        get(name).command(deployment, port=1)
    except UnsupportedError:
        assert not claims[field]


# All workloads


def place(ranking: Ranking, backend: str) -> int:
    return next((n for n, each in enumerate(ranking.places) if each.backend == backend), len(CAPABILITIES))


@given(workloads, st.floats(0, 1))
def test_more_shared_prefix_never_moves_a_prefix_reusing_backend_down(work: Workload, share: float) -> None:
    less, more = sorted((work.shared_prefix, share))
    before, after = rank(change(work, shared_prefix=less)), rank(change(work, shared_prefix=more))
    for backend in PREFIX_BACKENDS:
        assert place(after, backend) <= place(before, backend)
    assert {each.backend for each in before.places} == {each.backend for each in after.places}


@given(workloads)
def test_every_backend_has_a_place_or_an_obstacle(work: Workload) -> None:
    ranking = rank(work)
    seen = [each.backend for each in (*ranking.places, *ranking.excluded)]
    assert sorted(seen) == sorted(able.backend for able in CAPABILITIES)
    assert all(each.obstacles for each in ranking.excluded)
    assert all(re.fullmatch(r"[A-Z0-9].*\.", each.reason) for each in ranking.places)


@given(workloads)
def test_a_pick_fits_the_memory_there_is(work: Workload) -> None:
    result = picked(work)
    assert sum(part.plan.gpus for part in result.parts) <= work.gpus
    for part in result.parts:
        plan, memory = part.plan, part.workload.accelerator_gib
        assert memory is not None
        gpus = plan.layout.gpus
        assert plan.weights_gib + plan.kv_gib + gpus * plan.reserve_gib <= gpus * memory * 1.000001
        assert (
            plan.fits * (plan.request_bytes - part.workload.shared_tokens * plan.kv_token_bytes) <= plan.kv_gib * 2**30
        )
        assert plan.kv_tokens >= work.tokens
        assert plan.requests >= 1
        assert gpus % plan.layout.nodes == 0
        enough = plan.replicas * plan.requests >= part.workload.concurrency
        assert enough or plan.replicas == part.workload.gpus // gpus


@given(workloads)
def test_the_yaml_of_a_pick_is_a_valid_resource(work: Workload) -> None:
    result = picked(work)
    if lack := missing(result):
        assert re.match("--model: must say where weights in (awq|gptq) are", lack)
        return
    deployments = [ModelDeployment.model_validate(each) for each in yaml.safe_load_all(to_yaml(result))]
    assert [each.spec.backend.type for each in deployments] == [part.candidate.backend for part in result.parts]
    for deployment, part in zip(deployments, result.parts, strict=True):
        limit = deployment.spec.context.max_tokens
        assert limit is None or work.tokens <= limit <= part.plan.kv_tokens
    if len(deployments) == 2:
        assert deployments[0].name != deployments[1].name
        assert deployments[0].spec.model.aliases[0] == deployments[1].spec.model.aliases[0]
        assert {each.spec.routing.share for each in deployments} == {"Auto"}


@given(workloads)
def test_more_gpus_never_make_a_workload_impossible(work: Workload) -> None:
    picked(work)
    pick(change(work, gpus=2 * work.gpus))


@settings(max_examples=300)
@given(workloads)
def test_what_a_refusal_suggests_is_possible(work: Workload) -> None:
    try:
        pick(work)
        return
    except WorkloadError:
        return  # what such a checkpoint cannot be
    except ImpossibleError as error:
        message = str(error)
    assert "\n" not in message
    assert re.search(r"\d .*> [\d,]+|on |only|no |needs ", message)
    if "; try " in message:
        for way in message.rpartition("; try ")[2].split(" or "):
            changes = dict(re.findall(r"--(\w+) (\w+)", way))
            values = {name: int(value) if value.isdigit() else value for name, value in changes.items()}
            assert pick(change(work, **values))


@given(workloads)
def test_the_same_workload_gets_the_same_pick(work: Workload) -> None:
    assert picked(work) == picked(change(work))


# Workloads that are none


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "--params: it is required"),
        ({"model": "s3://bucket/mine"}, "--params: it is required"),
        ({"model": "mine"}, "--model: must be a size such as 8b, a source such as hf://OWNER/NAME"),
        ({"model": "8b", "shared_prefix": 1.5}, "--shared-prefix: must be less than or equal to 1, found 1.5"),
        ({"model": "8b", "gpu": "quantum"}, "--gpu: must be one of cpu, t4"),
        ({"model": "8b", "gpu": "h100s"}, '--gpu: is not known; found "h100s"; did you mean h100?'),
        (
            {"model": "8b", "gpu": "h100-9g.80gb"},
            '--gpu: is not known; found "h100-9g.80gb"; did you mean h100-1g.10gb or h100-1g.20gb',
        ),
        ({"model": "8b", "gpu": "a100"}, '--gpu: is not known; found "a100"; did you mean a100-40 or a100-80?'),
        (
            {"model": "8b", "gpu": "NVIDIA-H100-80GB-HBM3"},
            '--gpu: is not known; found "NVIDIA-H100-80GB-HBM3"; did you mean h100?',
        ),
        ({"model": "8b", "gpu": "4090"}, '--gpu: is not known; found "4090"; did you mean rtx4090?'),
        ({"model": "8b", "gpu": "nvidia", "memory_gib": 24}, "--bandwidth: is required: NVIDIA GPU may be any"),
        ({"model": "8b", "gpu": "nvidia", "memory_gib": 24, "bandwidth": 600}, "--flops: is required"),
        ({"model": "8b", "memory_gib": "inf"}, "--memory-gib: must be a number that is finite"),
        ({"model": "0b"}, "--model: must be a size from 1m to 100t"),
        ({"model": "1000t"}, "--model: must be a size from 1m to 100t"),
        ({"model": "Lama-3.1-8B"}, "--model: must be a size such as 8b, a source such as hf://OWNER/NAME"),
        ({"params": "3b", "family": "llma"}, '--family: is not known; found "llma"; did you mean llama?'),
        ({"params": "8b", "layers": 3, "full_layers": 5}, "--full-layers: must be at most all layers, which are 3"),
        ({"params": "8b", "layers": 32, "window": 100}, "--window: needs --full-layers"),
        ({"params": "8b", "heads": 32, "kv_heads": 64}, "--kv-heads: must be at most --heads, which is 32; found 64"),
        ({"params": "8b", "active": "9b"}, "--active: must be at most --params"),
        ({"model": LLAMA, "expert": True, "gpus": 2, "tensor": 2}, "--expert: Llama-3.1-8B has no experts to spread"),
        (
            {"model": "Qwen/Qwen3-8B-FP8", "quantization": "awq"},
            "--quantization: Qwen3-8B is a checkpoint in fp8 already",
        ),
        (
            {"model": "openai/gpt-oss-20b", "quantization": "fp8"},
            "--quantization: gpt-oss-20b is a checkpoint in mxfp4",
        ),
        ({"model": LLAMA, "offline": True, "rate": 10}, "--rate: is for requests that somebody waits for"),
        ({"model": LLAMA, "offline": True, "tpot": 0.1}, "--tpot: is for requests that somebody waits for"),
        ({"model": LLAMA, "node_selector": "bad key!=x"}, "--node-selector: must be labels such as"),
        ({"model": LLAMA, "image": "not an image"}, "--image: must be an image such as REGISTRY/NAME:TAG"),
        ({"model": "Qwen/Qwen-mini"}, "--params: it is required, or --config"),
        ({"model": "lab/new-8x7b"}, "--active: it is required, or --config"),
        ({"model": "openai/gpt-os-120"}, "--params: did you mean openai/gpt-oss-120b? Else it is required"),
        ({"model": "8b", "gpu": "nvidia"}, "--memory-gib: is required"),
        ({"model": "8b", "build_time": "long"}, "--build-time: must be a duration"),
        ({"model": "8b", "tensor": 2}, "--tensor: must be at most --gpus, which is 1; found 2"),
        (
            {"model": "8b", "nodes": 2},
            "--nodes: must divide --tensor x --pipeline x --data, which is not given; found 2",
        ),
        ({"params": "eight"}, "--params: must be a number of parameters such as 8b, 70.6b or 135m"),
    ],
)
def test_a_wrong_workload_names_its_flag(values: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError) as error:
        pick(workload(values))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tensor": 3, "gpus": 4}, "3 of H100 cannot share the 32 heads and 8 KV heads of Llama-3.1-8B evenly"),
        (
            {"tensor": 2, "gpus": 2, "gpu": "h100-2g.20gb"},
            "2 of H100 2g.20gb cannot share a layer: no link joins slices",
        ),
    ],
)
def test_gpus_that_cannot_share_a_layer_are_told_why(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ImpossibleError) as error:
        pick(workload({"model": LLAMA} | values))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "way"),
    [
        ({"budget": 1, "price": "h100=2"}, "try --budget 2"),
        ({"tensor": 3, "gpus": 4}, "try --tensor 2"),
        ({"pipeline": 64, "gpus": 64}, "try --pipeline 32"),
    ],
)
def test_a_refusal_names_the_nearest_that_would_do(values: dict[str, Any], way: str) -> None:
    with pytest.raises(ImpossibleError, match=f"{way}$"):
        pick(workload({"model": LLAMA} | values))


def test_a_name_that_is_spelled_nearly_right_is_asked_about_even_where_its_size_is_told() -> None:
    notes = pick(workload({"model": "meta-llama/Llama-3.1-8B-Instuct"})).notes
    assert "did you mean meta-llama/Llama-3.1-8B-Instruct? Else --config gives exact figures." in notes[0]
    with pytest.raises(WorkloadError, match=r"did you mean meta-llama/Llama-3\.1-8B-Instruct\?"):
        workload({"model": "Lama-3.1-8B"})


def test_weights_in_a_format_that_no_server_makes_are_assumed_and_not_written() -> None:
    found = pick(workload({"model": LLAMA, "quantization": "awq"}))
    assert missing(found) == (
        f"--model: must say where weights in awq are: hf://{LLAMA} holds 16 bits, and no server packs them"
    )
    assert missing(pick(workload({"model": "s3://bucket/mine-8b", "quantization": "awq"}))) is None


def test_a_request_longer_than_the_models_positions_is_refused() -> None:
    with pytest.raises(ImpossibleError, match=r"8,000 \+ 250 tokens = 8,250 > 8,192 positions of gemma-2-9b"):
        pick(workload({"model": "google/gemma-2-9b-it", "input_tokens": 8000}))


def test_build_time_is_a_duration() -> None:
    assert workload({"model": "8b", "build_time": "1h30m"}).build_time == timedelta(minutes=90)
