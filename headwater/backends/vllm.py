"""vLLM, as `vllm serve` of version 0.32; metric names also of older ones."""

import json
from collections.abc import Mapping
from typing import ClassVar

from headwater.backends.base import (
    A_FILE,
    ADDRESS_FLAGS,
    APIS,
    COUNTED,
    EVENTS,
    FILES,
    GROUP_RANK,
    MODEL_FLAGS,
    NAME_FLAGS,
    WHERE,
    AdapterReading,
    Backend,
    Launch,
    LoadMetrics,
    Pod,
    Reading,
    generation_config,
    hub_name_or_path,
)
from headwater.backends.dialects.vllm import VLLMDialect
from headwater.resource import ModelDeployment, Parallelism

_CACHE_DTYPES = ("auto", "bfloat16", "float16", "fp8")
_MASTER_PORT = 29501
_DATA_PORT = 29502
_MAX_LORA_RANK = 64
_MAX_LORAS = 4
_MAX_CPU_LORAS = 128
"""All that a resource can have: in memory they stay, where else each would be read anew for whoever asks for it."""
_DATA_FLAGS = (
    *("--data-parallel-size", "-dp", "--data-parallel-rank", "-dpn", "--data-parallel-external-lb", "-dpe"),
    *("--data-parallel-hybrid-lb", "-dph", "--data-parallel-multi-port-external-lb", "-dpm"),
)
_NODE_FLAGS = (
    *("--nnodes", "-n", "--node-rank", "-r", "--master-addr", "--master-port", "--headless"),
    *("--data-parallel-size-local", "-dpl", "--data-parallel-address", "-dpa"),
    *("--data-parallel-rpc-port", "-dpp", "--data-parallel-start-rank", "-dpr", "--distributed-executor-backend"),
)
_NO_DOMAIN = "none.invalid"
"""A name that is reserved for being none. An empty list would let all hosts in."""


class VLLM(Backend):
    name = "vllm"
    metrics = LoadMetrics(
        running=(Reading("vllm:num_requests_running"),),
        waiting=(Reading("vllm:num_requests_waiting"),),
        cache_usage=(Reading("vllm:kv_cache_usage_perc"), Reading("vllm:gpu_cache_usage_perc")),
        total_blocks=(Reading("vllm:cache_config_info", label="num_gpu_blocks"),),
        block_size=(Reading("vllm:cache_config_info", label="block_size"),),
        token_seconds=(Reading("vllm:inter_token_latency_seconds_sum"),),
        tokens=(Reading("vllm:inter_token_latency_seconds_count"),),
        rank="engine",
        adapters=AdapterReading(
            "vllm:lora_requests_info", "waiting_lora_adapters", "running_lora_adapters", slots="max_lora"
        ),
    )
    image = "vllm/vllm-openai:v0.32.0"
    loads_adapters = "runtime"
    repeats_kv_events = True
    no_statistics: ClassVar[Mapping[str, str]] = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
    adapters_prefix = "/v1"
    dialect = VLLMDialect()
    apis = APIS
    rank_header = "x-data-parallel-rank"
    own_flags: ClassVar[Mapping[str, str]] = {
        **ADDRESS_FLAGS,
        "--uds": WHERE,
        **MODEL_FLAGS,
        **NAME_FLAGS,
        "--config": A_FILE,
        "--hf-token": "spec.model.secretRef",
        **dict.fromkeys(("--tensor-parallel-size", "-tp"), "spec.parallelism.tensor"),
        **dict.fromkeys(("--pipeline-parallel-size", "-pp"), "spec.parallelism.pipeline"),
        **dict.fromkeys(_DATA_FLAGS, "spec.parallelism.data"),
        **dict.fromkeys(("--enable-expert-parallel", "-ep"), "spec.parallelism.expert"),
        **dict.fromkeys(_NODE_FLAGS, "spec.parallelism.nodes"),
        "--max-model-len": "spec.context.maxTokens",
        "--override-generation-config": "spec.sampling",
        **dict.fromkeys(("--quantization", "-q"), "spec.quantization"),
        **dict.fromkeys(("--gpu-memory-utilization", "--device-memory-utilization"), "spec.cache.fraction"),
        "--kv-cache-dtype": "spec.cache.dtype",
        "--kv-offloading-size": "spec.cache.hostGiB",
        **dict.fromkeys(("--enable-lora", "--lora-modules"), "spec.adapters"),
        "--kv-events-config": EVENTS,
        "--shutdown-timeout": "spec.drainTimeout",
        "--enable-prompt-tokens-details": COUNTED,
    }
    free_flags: ClassVar[Mapping[str, str]] = {
        "--allowed-media-domains": "which hosts may be asked depends on who asks the model",
        "--max-loras": "how many adapters compute at once depends on the GPU's memory",
        "--max-lora-rank": "it depends on the adapters",
        "--max-cpu-loras": "it depends on the node's memory",
    }

    def command(self, deployment: ModelDeployment, *, port: int, events: str | None = None) -> list[str]:
        spec = deployment.spec
        self.refuse_all_but(deployment, parallelism__nodes=1)
        source = self.local_source(deployment, "hf://", "file://")
        argv = ["vllm", "serve", hub_name_or_path(source), "--host", "127.0.0.1", "--port", str(port)]
        argv += self._flags(deployment, source)
        if events is not None:
            argv += ["--kv-events-config", _events_config(events)]
        if spec.adapters:
            argv += ["--enable-lora", "--lora-modules"]
            argv += [f"{adapter.name}={hub_name_or_path(adapter.source)}" for adapter in spec.adapters]
        return argv + spec.backend.args

    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        spec = deployment.spec
        argv = ["vllm", "serve", hub_name_or_path(pod.model), "--host", "0.0.0.0", "--port", str(pod.port)]
        argv += self._flags(deployment, pod.model)
        if pod.events_port is not None:
            argv += ["--kv-events-config", _events_config(f"tcp://*:{pod.events_port}", pod.replay_port)]
        argv += ["--shutdown-timeout", str(pod.drain)]
        if pod.guarded:
            argv += ["--allowed-media-domains", _NO_DOMAIN]
        env: dict[str, str] = {}
        files: dict[str, str] = {}
        if spec.adapters:
            # Not those of the deployment: they come and go while the server runs.
            argv += ["--enable-lora", "--max-loras", str(_MAX_LORAS), "--max-lora-rank", str(_MAX_LORA_RANK)]
            if pod.guarded:
                argv += ["--max-cpu-loras", str(_MAX_CPU_LORAS)]
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        if pod.leader is not None:
            argv += self._group(deployment, pod.leader)
            argv += ["--distributed-executor-backend", "mp"]
            argv += ["--config", f"{FILES}/rank-$({GROUP_RANK}).yaml"]  # the pods of a group have the same arguments
            ranks = range(spec.parallelism.nodes)
            files = {f"rank-{rank}.yaml": _rank_config(rank, spec.parallelism) for rank in ranks}
            env["VLLM_HOST_IP"] = "$(POD_IP)"
        return Launch(argv + spec.backend.args, env, files)

    def _group(self, deployment: ModelDeployment, leader: str) -> list[str]:
        """Layers over all nodes; or, where attention is apart, a part of its groups on each."""
        wanted = deployment.spec.parallelism
        if wanted.data == 1:
            argv = ["--nnodes", str(wanted.nodes), "--node-rank", f"$({GROUP_RANK})"]
            return [*argv, "--master-addr", leader, "--master-port", str(_MASTER_PORT)]
        if wanted.data % wanted.nodes:
            message = f"has as many groups on each of {wanted.nodes} nodes: a multiple of that; found {wanted.data}"
            raise self.unsupported(deployment, "spec.parallelism.data", message)
        argv = ["--data-parallel-size-local", str(wanted.data // wanted.nodes)]
        return [*argv, "--data-parallel-address", leader, "--data-parallel-rpc-port", str(_DATA_PORT)]

    def _flags(self, deployment: ModelDeployment, source: str) -> list[str]:
        self.refuse_all_but(
            deployment,
            cache__dtype=_CACHE_DTYPES,
            sampling__presence_penalty=None,  # which no generation_config.json has
            sampling__frequency_penalty=None,
        )
        spec = deployment.spec
        flags = ["--served-model-name", *deployment.served_names]
        flags += ["--tensor-parallel-size", str(spec.parallelism.tensor)]
        if spec.parallelism.pipeline > 1:
            flags += ["--pipeline-parallel-size", str(spec.parallelism.pipeline)]
        if spec.parallelism.data > 1:
            flags += ["--data-parallel-size", str(spec.parallelism.data)]
        if spec.parallelism.expert:
            flags += ["--enable-expert-parallel"]
        flags += ["--gpu-memory-utilization", str(spec.cache.fraction)]
        flags += ["--enable-prompt-tokens-details"]  # else usage never tells the cached tokens
        if source.startswith("hf://"):
            flags += ["--revision", spec.model.revision]
        if spec.context.max_tokens is not None:
            flags += ["--max-model-len", str(spec.context.max_tokens)]
        if spec.quantization != "none":
            flags += ["--quantization", spec.quantization]
        if spec.cache.dtype != "auto":
            flags += ["--kv-cache-dtype", spec.cache.dtype]
        if spec.cache.host_gib:
            flags += ["--kv-offloading-size", str(spec.cache.host_gib)]
        return flags + generation_config(spec.sampling)


def _events_config(address: str, replay_port: int | None = None) -> str:
    # vLLM binds `tcp://*:PORT` and `ipc://PATH`. To any other address, one of the loopback interface too, it connects.
    config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": address}
    if replay_port is not None:
        config["replay_endpoint"] = f"tcp://*:{replay_port}"
    return json.dumps(config)


def _rank_config(rank: int, wanted: Parallelism) -> str:
    text = f"headless: {'true' if rank else 'false'}\n"
    if rank and wanted.data > 1:
        text += f"data-parallel-start-rank: {rank * wanted.data // wanted.nodes}\n"
    return text
