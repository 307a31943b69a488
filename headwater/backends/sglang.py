"""SGLang, as `sglang.launch_server` of version 0.5.23.

It reports one name and answers to any. An adapter is asked for as BASE:ADAPTER, not by its own name.
"""

import json
import math
from collections.abc import Mapping
from typing import ClassVar

from headwater.backends.base import (
    A_FILE,
    ADDRESS_FLAGS,
    ADMIN_KEY,
    APIS,
    COUNTED,
    EVENTS,
    GROUP_RANK,
    MODEL_FLAGS,
    NAME_FLAGS,
    Backend,
    Launch,
    LoadMetrics,
    Pod,
    Reading,
    hub_name_or_path,
)
from headwater.backends.dialects.sglang import SGLangDialect
from headwater.resource import ModelDeployment, Parallelism, Spec

_INIT_PORT = 5000
_MAX_LORA_RANK = 64
_CACHE_DTYPES = {"auto": "auto", "bfloat16": "bfloat16", "fp8": "fp8_e4m3"}
_CHEAP_HEALTH = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"}
"""Else /health generates a token, which takes a second at least and more under load."""


class SGLang(Backend):
    name = "sglang"
    health_path = "/health_generate"
    health_timeout = 25  # it waits for that token for 20 seconds
    alive_path = "/model_info"
    ready_path_computes = True  # where somebody else started it, without _CHEAP_HEALTH
    metrics = LoadMetrics(
        running=(Reading("sglang:num_running_reqs"),),
        waiting=(Reading("sglang:num_queue_reqs"),),
        cache_usage=(Reading("sglang:token_usage"),),
        total_tokens=(Reading("sglang:max_total_num_tokens"),),
        block_size=(Reading("sglang:page_size"),),
        most_running=(Reading("sglang:max_running_requests"),),
        token_seconds=(Reading("sglang:inter_token_latency_seconds_sum"),),
        tokens=(Reading("sglang:inter_token_latency_seconds_count"),),
        rank="dp_rank",
        # With --enable-priority-scheduling it tells numbers for each priority, too, and with
        # --enable-metrics-for-all-schedulers for each of the ranks that share a layer or follow one another. Where
        # attention is data-parallel, the first that share a layer of the second engine are not numbered 0.
        part="tp_rank",
        of_all=(("priority", ""), ("pp_rank", "0")),
    )
    image = "lmsysorg/sglang:v0.5.23"
    workers_answer_probes = True
    loads_adapters = "runtime"
    repeats_kv_events = True
    takes_admin_key = True
    dialect = SGLangDialect()
    apis = APIS
    rank_header = "x-data-parallel-rank"  # for chats, completions and responses, where it counts more than the body
    own_flags: ClassVar[Mapping[str, str]] = {
        **ADDRESS_FLAGS,
        **MODEL_FLAGS,
        **NAME_FLAGS,
        "--model-path": "spec.model.source",
        "--config": A_FILE,
        **dict.fromkeys(("--tp-size", "--tensor-parallel-size"), "spec.parallelism.tensor"),
        **dict.fromkeys(("--pp-size", "--pipeline-parallel-size"), "spec.parallelism.pipeline"),
        **dict.fromkeys(("--dp-size", "--data-parallel-size", "--enable-dp-attention"), "spec.parallelism.data"),
        **dict.fromkeys(("--attn-dp-size", "--attention-data-parallel-size"), "spec.parallelism.data"),
        **dict.fromkeys(("--ep-size", "--expert-parallel-size", "--ep"), "spec.parallelism.expert"),
        **dict.fromkeys(("--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr"), "spec.parallelism.nodes"),
        "--context-length": "spec.context.maxTokens",
        "--quantization": "spec.quantization",
        "--mem-fraction-static": "spec.cache.fraction",
        "--kv-cache-dtype": "spec.cache.dtype",
        **dict.fromkeys(("--enable-hierarchical-cache", "--enable-hicache"), "spec.cache.hostGiB"),
        **dict.fromkeys(("--hicache-size", "--hicache-ratio"), "spec.cache.hostGiB"),
        **dict.fromkeys(("--enable-lora", "--lora-paths"), "spec.adapters"),
        "--kv-events-config": EVENTS,
        **dict.fromkeys(("--enable-metrics", "--enable-cache-report"), COUNTED),
        "--admin-api-key": "the operator, which has to know it",
    }
    free_flags: ClassVar[Mapping[str, str]] = {
        "--max-lora-rank": "it depends on the adapters",
        "--lora-target-modules": "it depends on the adapters",
    }

    def command(self, deployment: ModelDeployment, *, port: int, events: str | None = None) -> list[str]:
        spec = deployment.spec
        self.refuse_all_but(deployment, parallelism__nodes=1)
        source = self.local_source(deployment, "hf://", "file://")
        argv = self._serve(deployment, source, "127.0.0.1", port)
        if events is not None:
            argv += ["--kv-events-config", _events_config(events)]
        if spec.adapters:
            argv += ["--enable-lora", "--lora-paths"]
            argv += [f"{adapter.name}={hub_name_or_path(adapter.source)}" for adapter in spec.adapters]
        return argv + spec.backend.args

    def environment(self, deployment: ModelDeployment) -> Mapping[str, str]:
        return _CHEAP_HEALTH | deployment.spec.backend.env

    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        spec = deployment.spec
        argv = self._serve(deployment, pod.model, "0.0.0.0", pod.port)
        if pod.events_port is not None:
            argv += ["--kv-events-config", _events_config(f"tcp://*:{pod.events_port}", pod.replay_port)]
        if pod.admin_key:
            argv += ["--admin-api-key", f"$({ADMIN_KEY})"]
        if spec.adapters:
            # Not those of the deployment: they come and go while the server runs.
            argv += ["--enable-lora", "--max-lora-rank", str(_MAX_LORA_RANK), "--lora-target-modules", "all"]
        if pod.leader is not None:
            argv += ["--nnodes", str(spec.parallelism.nodes), "--node-rank", f"$({GROUP_RANK})"]
            argv += ["--dist-init-addr", f"{pod.leader}:{_INIT_PORT}"]
        return Launch(argv + spec.backend.args, _CHEAP_HEALTH)

    def adapter_name(self, model: str, adapter: str) -> str:
        return f"{model}:{adapter}"

    def _serve(self, deployment: ModelDeployment, source: str, host: str, port: int) -> list[str]:
        self.refuse_all_but(deployment, cache__dtype=tuple(_CACHE_DTYPES))
        self.refuse_sampling(deployment)  # its --preferred-sampling-params reach no request in OpenAI's form
        spec = deployment.spec
        argv = ["python3", "-m", "sglang.launch_server", "--model-path", hub_name_or_path(source)]
        argv += ["--host", host, "--port", str(port), "--served-model-name", deployment.name]
        argv += [*_parallelism(spec.parallelism), "--enable-metrics", "--enable-cache-report"]
        if source.startswith("hf://"):
            argv += ["--revision", spec.model.revision]
        if spec.context.max_tokens is not None:
            argv += ["--context-length", str(spec.context.max_tokens)]
        if spec.quantization != "none":
            argv += ["--quantization", spec.quantization]
        return argv + _cache_flags(spec)


def _parallelism(wanted: Parallelism) -> list[str]:
    """What SGLang calls tensor parallelism are all GPUs of a stage, which it divides into groups for attention."""
    together = wanted.tensor * wanted.data
    flags = ["--tp-size", str(together)]
    if wanted.pipeline > 1:
        flags += ["--pp-size", str(wanted.pipeline)]
    if wanted.data > 1:
        flags += ["--dp-size", str(wanted.data), "--enable-dp-attention"]
    if wanted.expert:
        flags += ["--ep-size", str(together)]
    return flags


def _cache_flags(spec: Spec) -> list[str]:
    flags = []
    if spec.cache.fraction != type(spec.cache).model_fields["fraction"].default:
        # Its own default leaves room for activations and graphs, which ours does not know.
        flags += ["--mem-fraction-static", str(spec.cache.fraction)]
    if spec.cache.dtype != "auto":
        flags += ["--kv-cache-dtype", _CACHE_DTYPES[spec.cache.dtype]]
    if spec.cache.host_gib:
        flags += ["--enable-hierarchical-cache", "--hicache-size", str(math.ceil(spec.cache.host_gib))]
    return flags


def _events_config(address: str, replay_port: int | None = None) -> str:
    config = {"publisher": "zmq", "endpoint": address}
    if replay_port is not None:
        config["replay_endpoint"] = f"tcp://*:{replay_port}"
    return json.dumps(config)
