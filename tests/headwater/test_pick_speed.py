"""Speed: what is predicted against what was published, and what goals for it change."""

import csv
import math
from functools import cache
from pathlib import Path

import pytest

from headwater.pick.capabilities import CAPABILITIES
from headwater.pick.choice import ImpossibleError, pick
from headwater.pick.hardware import accelerator
from headwater.pick.layout import Layout
from headwater.pick.memory import plan_with, request_bytes, weights_gib
from headwater.pick.reserve import GIB
from headwater.pick.speed import Machine, pace, prompt_seconds, speed_of, throughput
from headwater.pick.workload import workload

FIXTURES = Path(__file__).parents[1] / "fixtures/pick"
VLLM = CAPABILITIES[0]
LLAMA = {"model": "meta-llama/Llama-3.3-70B-Instruct", "quantization": "fp8", "gpus": 16}

# How TensorRT-LLM's table was made: so many requests at once for each length, 0.95 of what is free for the cache,
# which is in FP8 for DeepSeek, for what NVIDIA has published, and for gpt-oss on Blackwell.
REQUESTS = {(1000, 1000): 3000, (1024, 1024): 3000, (8192, 1024): 1500, (1024, 8192): 1500}
BATCH = 2048


@cache
def ratios() -> dict[str, float]:
    """Predicted over published, of tokens a second and GPU."""
    with (FIXTURES / "throughput.csv").open() as file:
        return {" ".join(list(row.values())[:6]): _ratio(row) for row in csv.DictReader(file)}


def _ratio(row: dict[str, str]) -> float:
    small = row["model"].startswith("nvidia/") or "R1" in row["model"] or ("gpt" in row["model"] and "b2" in row["gpu"])
    work = workload(
        {key: row[key] for key in ("model", "gpu", "gpus")}
        | {"input_tokens": row["input"], "output_tokens": row["output"], "kv_dtype": "fp8" if small else "auto"}
    )
    shape, gpus, whole = work.shape, work.gpus, row["attention"] == "whole"
    assert shape
    assert work.accelerator_gib
    free = gpus * (work.accelerator_gib - 3) * 0.95 - weights_gib(work, shape, VLLM)
    fits = free * GIB / request_bytes(work, shape, 1 if whole else gpus, work.tokens)
    batch = min(fits, REQUESTS[work.input_tokens, work.output_tokens], BATCH * gpus)
    made = (
        throughput(shape, work, Machine(work.accelerator, Layout(data=gpus) if whole else Layout(gpus)), batch) / gpus
    )
    return made / float(row["tokens_per_gpu"])


def test_throughput_is_within_half_as_much_again_of_what_was_published() -> None:
    assert len(ratios()) >= 14
    near = [ratio for ratio in ratios().values() if 1 / 1.5 <= ratio <= 1.5]
    assert len(near) / len(ratios()) >= 0.85
    assert all(1 / 2 <= ratio <= 2 for ratio in ratios().values()), ratios()
    assert abs(math.log(sorted(ratios().values())[len(ratios()) // 2])) < math.log(1.1), "as often too high as too low"


@cache
def held_out() -> dict[str, float]:
    """The same for servers that nothing was fitted to, with as many requests at once as they had and as fit."""
    with (FIXTURES / "throughput_held_out.csv").open() as file:
        return {" ".join(list(row.values())[:8]): _of_server(row) for row in csv.DictReader(file)}


def _of_server(row: dict[str, str]) -> float:
    work = workload(
        {key: row[key] for key in ("model", "gpu", "gpus")}
        | {"input_tokens": row["input"], "output_tokens": row["output"], "concurrency": row["requests"]}
    )
    able = next(each for each in CAPABILITIES if each.backend == row["server"].split()[0])
    layout = Layout(data=work.gpus, expert=True) if row["attention"] == "whole" else Layout(work.gpus)
    assert work.shape
    plan = plan_with(work, work.shape, able, layout)
    assert plan
    batch = min(plan.requests, int(row["requests"]))
    return pace(work.shape, work, Machine(work.accelerator, layout), batch).tokens / float(row["tokens"])


def test_throughput_of_vllm_and_sglang_which_nothing_was_fitted_to_is_as_near() -> None:
    assert len(held_out()) >= 14
    near = [ratio for ratio in held_out().values() if 1 / 1.5 <= ratio <= 1.5]
    assert len(near) / len(held_out()) >= 10 / 14, held_out()
    assert all(1 / 2 <= ratio <= 2 for ratio in held_out().values()), held_out()


def test_attention_to_a_window_is_cheaper_and_no_faster_for_weights_in_8_bits() -> None:
    def seconds(name: str, tokens: int, **flags: str) -> float:
        work = workload({"model": name} | flags)
        assert work.shape
        return prompt_seconds(work.shape, work, Machine(work.accelerator, Layout()), tokens)

    def growth(name: str, **flags: str) -> float:
        return seconds(name, 64_000, **flags) / seconds(name, 1000, **flags)

    assert growth("google/gemma-3-27b-it") < growth("Qwen/Qwen3-32B"), "five of six layers see 1,024 tokens"
    assert growth("Qwen/Qwen3-32B", quantization="fp8") > growth("Qwen/Qwen3-32B")
    ampere = {quantization: seconds("Qwen/Qwen3-32B", 1000, gpu="a100-80", quantization=quantization)
              for quantization in ("none", "fp8")}  # fmt: skip
    assert ampere["fp8"] == ampere["none"], "Ampere has no arithmetic in FP8"


def test_a_rate_takes_as_many_replicas_as_compute_it() -> None:
    few, many = (pick(workload(LLAMA | {"rate": rate})).parts[0].plan.replicas for rate in (1, 60))
    assert many > few


def test_a_rate_that_is_too_much_is_said_to_be() -> None:
    said = dict(pick(workload(LLAMA | {"rate": 100_000})).parts[0].arithmetic())
    assert said["rate"].endswith("more than these GPUs make")


def test_a_slice_has_its_share_of_memory_bandwidth_and_arithmetic() -> None:
    whole, part = accelerator("H100"), accelerator("h100-2g.20gb")
    assert part.memory_gib == pytest.approx(whole.memory_gib / 4)  # type: ignore[operator]
    assert part.bandwidth_gbs == whole.bandwidth_gbs / 4
    assert part.tflops == whole.tflops * 2 / 7


def test_a_goal_for_each_token_takes_fewer_requests_at_once() -> None:
    easy, hard = (pick(workload(LLAMA | {"concurrency": 256, "tpot": tpot})).parts[0].plan for tpot in (0.2, 0.02))
    assert hard.requests < easy.requests
    assert hard.gpus > easy.gpus


@pytest.mark.parametrize(("goal", "said"), [("tpot", "--tpot allows 1e-05"), ("ttft", "--ttft allows 1e-05")])
def test_a_goal_that_nothing_reaches_is_refused_with_what_is_possible(goal: str, said: str) -> None:
    with pytest.raises(ImpossibleError, match=said):
        pick(workload(LLAMA | {goal: 1e-5}))


def test_a_budget_bounds_the_gpus() -> None:
    plan = pick(workload(LLAMA | {"concurrency": 3000, "price": "h100=2.5", "budget": 10})).parts[0].plan
    assert plan.gpus <= 4
    with pytest.raises(ImpossibleError, match=r"--budget 2 pays at 2\.5"):
        pick(workload(LLAMA | {"price": "h100=2.5", "budget": 2}))


def test_offline_work_uses_all_gpus() -> None:
    assert pick(workload(LLAMA | {"offline": True})).parts[0].plan.gpus == 16


# Milliseconds between tokens


def latency_rows() -> list[dict[str, str]]:
    with (FIXTURES / "latency.csv").open() as file:
        return list(csv.DictReader(file))


@cache
def between_tokens() -> list[tuple[float, float]]:
    """By the roofline, for each row: the middle of the range, and what is physically possible."""
    return [_between(row) for row in latency_rows()]


def _between(row: dict[str, str]) -> tuple[float, float]:
    values = {key: row[key] for key in ("model", "gpu", "gpus", "kv_dtype")} | {"concurrency": row["requests"]}
    values |= {"input_tokens": row["input"], "output_tokens": row["output"]}
    values |= {"quantization": row["quantization"]} if row["quantization"] else {}
    work = workload(values)
    plan = work.shape and plan_with(work, work.shape, VLLM, Layout(work.gpus))
    assert work.shape
    assert plan
    speed = speed_of(work.shape, work, plan)
    return speed.each.middle * 1e3, speed.step_seconds * 1e3


def test_times_between_tokens_that_were_published_are_near_the_ranges_and_never_below_what_is_possible() -> None:
    published = [float(row["middle"].split()[0]) if row["middle"] else None for row in latency_rows()]
    pairs = [(said, *found) for said, found in zip(published, between_tokens(), strict=True) if said is not None]
    assert len(pairs) >= 8
    assert all(floor < said for said, _, floor in pairs)
    assert all(1 / 2 <= middle / said <= 2 for said, middle, _ in pairs), pairs
