"""The engine's metrics under vLLM's names: as vLLM itself shows them, and as pickers read them."""

import re
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from headwater.backends.vllm import VLLM
from headwater_engine.core.messages import Ready, Stats
from headwater_engine.server.metrics import ServerMetrics

ROOT = Path(__file__).parents[2]
RECORDED = (ROOT / "tests" / "fixtures" / "vllm-0.32.0" / "metrics.txt").read_text()


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def after_some_work() -> ServerMetrics:
    metrics = ServerMetrics("vllm,headwater")
    metrics.vllm.model_name = "tiny"
    metrics.ready(Ready(max_model_len=64, vocab_size=512, num_blocks=100, block_size=16, kernels="fake"))
    metrics.take(
        Stats(
            steps=5, running=3, waiting=2, blocks_used=25, blocks_cached=4, blocks_total=100, prompt_tokens_cached=30,
            prompt_tokens_computed=70, preemptions=1, step_seconds=[], batch_sizes=[], prompt_tokens_limit=0,
            steps_on_pace=0, steps_off_pace=0,
        )
    )  # fmt: skip
    timer = metrics.start()
    for _ in range(3):
        timer.tokens(2)
    timer.finish("length")
    return metrics


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [each for family in found.values() for each in family.samples if each.name == name]
    (sample,) = [each for each in samples if labels.items() <= each.labels.items()]
    return float(sample.value)


def test_each_name_type_and_label_is_one_that_vllm_has() -> None:
    theirs = families(RECORDED)
    ours = {name: each for name, each in families(after_some_work().page().decode()).items() if "vllm:" in name}
    assert ours
    for name, family in ours.items():
        assert family.type == theirs[name].type
        known = {label for sample in theirs[name].samples for label in sample.labels}
        assert {label for sample in family.samples for label in sample.labels} <= known
        if name != "vllm:cache_config_info":
            assert {each.labels["model_name"] for each in family.samples} == {"tiny"}


def test_what_a_picker_asks_of_vllm_is_there() -> None:
    found = families(after_some_work().page().decode())
    readings = VLLM.metrics
    assert value(found, readings.running[0].metric) == 3
    assert value(found, readings.waiting[0].metric) == 2
    assert value(found, readings.cache_usage[0].metric) == 0.25
    config = found["vllm:cache_config_info"].samples[0].labels
    assert (config[str(readings.block_size[0].label)], config[str(readings.total_blocks[0].label)]) == ("16", "100")


def test_counters_and_histograms_tell_what_ours_do() -> None:
    found = families(after_some_work().page().decode())
    assert value(found, "vllm:prompt_tokens_total") == value(found, "vllm:prefix_cache_queries_total") == 100
    assert value(found, "vllm:prefix_cache_hits_total") == 30
    assert value(found, "vllm:generation_tokens_total") == 6
    assert value(found, "vllm:num_preemptions_total") == 1
    assert value(found, "vllm:request_success_total", finished_reason="length") == 1
    assert value(found, "vllm:time_to_first_token_seconds_count") == 1
    assert value(found, "vllm:inter_token_latency_seconds_count") == 2
    for end in ("_count", "_sum"):
        ours = value(found, f"headwater_engine_request_duration_seconds{end}")
        assert value(found, f"vllm:e2e_request_latency_seconds{end}") == ours


def test_only_who_asks_for_them_gets_them() -> None:
    assert "vllm:" not in ServerMetrics().page().decode()


def test_all_of_them_are_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    table = re.findall(r"^\| `(vllm:\w+)` \| (\w+) \|", text, re.MULTILINE)
    found = families(after_some_work().page().decode()).values()
    shown = {(each.name + "_total" * (each.type == "counter"), each.type) for each in found if "vllm:" in each.name}
    assert set(table) == shown
