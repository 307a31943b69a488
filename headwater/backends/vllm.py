"""vLLM, as `vllm serve` of version 0.32; metric names also of older ones."""

import json

from headwater.backends.base import Backend, LoadMetrics, Reading
from headwater.resource import ModelDeployment


class VLLM(Backend):
    name = "vllm"
    metrics = LoadMetrics(
        running=(Reading("vllm:num_requests_running"),),
        waiting=(Reading("vllm:num_requests_waiting"),),
        cache_usage=(Reading("vllm:kv_cache_usage_perc"), Reading("vllm:gpu_cache_usage_perc")),
        total_blocks=(Reading("vllm:cache_config_info", label="num_gpu_blocks"),),
        block_size=(Reading("vllm:cache_config_info", label="block_size"),),
    )

    def command(self, deployment: ModelDeployment, *, port: int, events_port: int | None = None) -> list[str]:
        spec = deployment.spec
        model = _hub_name_or_path(self.local_source(deployment, "hf://", "file://"))
        argv = ["vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--served-model-name", *deployment.served_names]
        argv += ["--tensor-parallel-size", str(spec.parallelism.tensor)]
        argv += ["--gpu-memory-utilization", str(spec.cache.fraction)]
        argv += ["--enable-prompt-tokens-details"]  # else usage never tells the cached tokens
        if spec.model.source.startswith("hf://"):
            argv += ["--revision", spec.model.revision]
        if spec.context.max_tokens is not None:
            argv += ["--max-model-len", str(spec.context.max_tokens)]
        if spec.quantization != "none":
            argv += ["--quantization", spec.quantization]
        if spec.cache.dtype != "auto":
            argv += ["--kv-cache-dtype", spec.cache.dtype]
        if spec.cache.host_gib:
            argv += ["--kv-offloading-size", str(spec.cache.host_gib)]
        if events_port is not None:
            argv += ["--kv-events-config", _events_config(events_port)]
        if spec.adapters:
            argv += ["--enable-lora", "--lora-modules"]
            argv += [f"{adapter.name}={_hub_name_or_path(adapter.source)}" for adapter in spec.adapters]
        return argv + spec.backend.args


def _hub_name_or_path(source: str) -> str:
    return source.removeprefix("hf://").removeprefix("file://")


def _events_config(port: int) -> str:
    # vLLM binds an endpoint only where it has a star, and connects to any other.
    return json.dumps({"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{port}"})
