"""How GPUs share a model: within a machine, over machines, and where a latent would be copied."""

from typing import Any

import pytest

from headwater.pick import pick
from headwater.pick.capabilities import CAPABILITIES, Capability
from headwater.pick.layout import Layout, layouts
from headwater.pick.memory import Plan, plan_with
from headwater.pick.ranking import rank
from headwater.pick.render import deployments
from headwater.pick.speed import Machine, pace
from headwater.pick.workload import Workload, workload

ABLE = {able.backend: able for able in CAPABILITIES}
R1 = {"model": "deepseek-ai/DeepSeek-R1", "gpu": "h200", "gpus": 16, "input_tokens": 4000, "output_tokens": 1000}
LLAMA = {"model": "meta-llama/Llama-3.1-405B-Instruct", "gpu": "h100", "gpus": 32, "concurrency": 64}


def offered(values: dict[str, Any], able: Capability) -> list[Layout]:
    work = workload(values)
    assert work.shape
    return layouts(work, work.shape, able)


def planned(work: Workload, layout: Layout) -> Plan:
    assert work.shape
    plan = plan_with(work, work.shape, ABLE["vllm"], layout)
    assert plan
    return plan


def test_layers_are_shared_in_a_machine_and_stages_go_over_machines() -> None:
    assert offered(LLAMA, ABLE["vllm"]) == [
        *(Layout(tensor) for tensor in (1, 2, 4, 8)),
        Layout(8, pipeline=2, nodes=2),
        Layout(8, pipeline=4, nodes=4),
    ]
    assert offered(LLAMA, ABLE["headwater"])[4] == Layout(16, nodes=2), "which has no stages"
    assert max(each.gpus for each in offered(LLAMA, ABLE["tgi"])) == 8


def test_attention_goes_apart_where_each_gpu_would_keep_a_whole_latent() -> None:
    apart = [each for each in offered(R1, ABLE["sglang"]) if each.data > 1]
    assert apart[-1] == Layout(data=16, expert=True, nodes=2)
    assert all(each.expert for each in apart)
    assert not [each for each in offered(LLAMA, ABLE["sglang"]) if each.data > 1]
    assert not [each for each in offered(R1, ABLE["tgi"]) if each.data > 1]


def test_attention_apart_copies_weights_and_not_the_cache() -> None:
    work = workload(R1 | {"gpus": 8})
    together, apart = planned(work, Layout(8)), planned(work, Layout(data=8, expert=True))
    assert together.kv_token_bytes == 8 * apart.kv_token_bytes
    assert 100 < apart.weights_gib - together.weights_gib < 140, "seven times all but the experts, 17 GB"
    assert apart.kv_gib < together.kv_gib
    assert apart.fits > 4 * together.fits


def test_a_stage_keeps_its_layers_and_their_cache() -> None:
    work = workload(LLAMA)
    shared, staged = planned(work, Layout(16, nodes=2)), planned(work, Layout(8, pipeline=2, nodes=2))
    assert shared.weights_gib == staged.weights_gib
    assert shared.kv_token_bytes == 2 * staged.kv_token_bytes, "8 KV heads on 16 GPUs are kept twice"


def test_the_stage_with_the_most_layers_says_how_much_fits() -> None:
    shape = workload(R1).shape
    assert shape
    assert shape.layers == 61
    assert Layout(8, pipeline=2).fullest(shape) == 2 * 31 / 61
    assert Layout(8).fullest(shape) == 1


def test_many_requests_at_once_get_attention_apart_and_few_do_not() -> None:
    few, many = (pick(workload(R1 | {"gpus": 8, "concurrency": n})) for n in (64, 512))
    assert deployments(few)[0]["spec"]["parallelism"] == {"tensor": 8}
    assert deployments(many)[0]["spec"]["parallelism"] == {"data": 8, "expert": True}
    assert deployments(many)[0]["spec"]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    said = dict(many.parts[0].arithmetic())
    assert said["GPUs"] == "8: 8 groups, each with attention for requests of its own, experts whole on one of 8"


def test_a_pipeline_makes_as_many_tokens_as_its_stages_and_no_request_faster() -> None:
    work = workload(LLAMA)
    assert work.shape
    one, two = (Machine(work.accelerator, Layout(8, pipeline=stages)) for stages in (1, 2))
    alone, staged = pace(work.shape, work, one, 32), pace(work.shape, work, two, 64)
    assert staged.tokens == pytest.approx(2 * alone.tokens)
    assert staged.each == pytest.approx(alone.each)


@pytest.mark.parametrize(("flag", "value"), [("pipeline", 2), ("data", 2), ("expert", True)])
def test_what_a_backend_has_not_is_an_obstacle(flag: str, value: Any) -> None:
    ranking = rank(workload({"model": "Qwen/Qwen3-30B-A3B", "gpus": 4, flag: value, "concurrency": 4}))
    assert [place.backend for place in ranking.places] == ["vllm", "sglang", "tensorrt-llm"]
    (made,) = deployments(pick(workload({"model": "Qwen/Qwen3-30B-A3B", "gpus": 4, flag: value, "tensor": 2})))
    assert made["spec"]["parallelism"] == {"tensor": 2, flag: value}


def test_tensorrt_has_attention_apart_on_single_gpus_alone() -> None:
    ranking = rank(workload({"model": "Qwen/Qwen3-30B-A3B", "gpus": 4, "data": 2, "tensor": 2, "concurrency": 4}))
    assert [place.backend for place in ranking.places] == ["vllm", "sglang"]


def test_a_built_engine_has_parts_of_layers_alone() -> None:
    built = {"model": "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", "gpus": 8, "build_time": "40m"}
    assert not [each for each in offered(built, ABLE["tensorrt-llm"]) if each.expert]
    assert [each for each in offered(built | {"build_time": "0s"}, ABLE["tensorrt-llm"]) if each.expert]
