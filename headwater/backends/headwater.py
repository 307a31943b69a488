"""Our own engine."""

import sys
from collections.abc import Mapping
from typing import ClassVar

from headwater.backends.base import (
    A_FILE,
    ADDRESS_FLAGS,
    EVENTS,
    GROUP_RANK,
    MODEL_FLAGS,
    NAME_FLAGS,
    NO_API,
    Backend,
    Launch,
    LoadMetrics,
    Pod,
    Reading,
    generation_config,
)
from headwater.resource import Cache, ModelDeployment

_LEADER_PORT = 29500
"""And the two behind it."""
_CACHE_DTYPES = ("auto", "bfloat16", "fp8")
_CPU_CACHE_DTYPES = ("auto", "bfloat16")
_FRACTION = Cache.model_fields["fraction"].default


class Headwater(Backend):
    name = "headwater"
    ready_path = "/ready"
    metrics = LoadMetrics(
        running=(Reading("headwater_engine_requests_running"),),
        waiting=(Reading("headwater_engine_requests_waiting"),),
        cache_usage=(Reading("headwater_engine_kv_cache_usage"),),
        total_blocks=(Reading("headwater_engine_kv_blocks"),),
        block_size=(Reading("headwater_engine_block_size"),),
        most_running=(Reading("headwater_engine_requests_limit"),),
        token_seconds=(Reading("headwater_engine_inter_token_latency_seconds_sum"),),
        tokens=(Reading("headwater_engine_inter_token_latency_seconds_count"),),
    )
    needs_gpu = False
    workers_answer_probes = True
    pod_sources = ("hf://", "package://", "file://", "random:")
    dialect = None
    apis = NO_API
    rank_header = None
    own_flags: ClassVar[Mapping[str, str]] = {
        **ADDRESS_FLAGS,
        **MODEL_FLAGS,
        **NAME_FLAGS,
        "--config": A_FILE,
        "--tensor-parallel-size": "spec.parallelism.tensor",
        **dict.fromkeys(("--nodes", "--node-rank", "--leader"), "spec.parallelism.nodes"),
        "--max-model-len": "spec.context.maxTokens",
        "--override-generation-config": "spec.sampling",
        "--gpu-memory-utilization": "spec.cache.fraction",
        "--kv-cache-dtype": "spec.cache.dtype",
        "--kv-events": EVENTS,
        "--shutdown-timeout": "spec.drainTimeout",
    }
    free_flags: ClassVar[Mapping[str, str]] = {
        "--device": "spec.resources say it on clusters alone, and know nothing of a GPU that comes by a claim",
        "--threads": "spec.resources say it on clusters alone, and a limit is more than what may be busy",
    }

    def command(self, deployment: ModelDeployment, *, port: int, events: str | None = None) -> list[str]:
        self.refuse_all_but(deployment, parallelism__nodes=1)
        source = self.local_source(deployment, *self.pod_sources)
        argv = [sys.executable, "-m", "headwater", "serve", source, "--port", str(port)]
        argv += self._flags(deployment, source)
        if deployment.spec.cache.fraction != _FRACTION:
            argv += ["--gpu-memory-utilization", str(deployment.spec.cache.fraction)]  # unheeded on a CPU
        if events is not None:
            argv += ["--kv-events", events]
        return argv + deployment.spec.backend.args

    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        argv = ["headwater", "serve", pod.model, "--host", "0.0.0.0", "--port", str(pod.port)]
        argv += self._flags(deployment, pod.model)
        if pod.events_port is not None:
            argv += ["--kv-events", f"tcp://*:{pod.events_port}"]
        argv += ["--shutdown-timeout", str(pod.drain)]
        if pod.device == "cuda":
            # Not as it finds it: where the driver is missing, a CPU would take its place in silence.
            argv += ["--device", "cuda", "--gpu-memory-utilization", str(deployment.spec.cache.fraction)]
        elif pod.device == "cpu":
            self.refuse_all_but(deployment, cache__dtype=_CPU_CACHE_DTYPES)
        if pod.threads is not None:
            argv += ["--threads", str(pod.threads)]  # of all ranks here together; else all cores of the node
        if pod.leader is not None:
            argv += ["--nodes", str(deployment.spec.parallelism.nodes), "--node-rank", f"$({GROUP_RANK})"]
            argv += ["--leader", f"{pod.leader}:{_LEADER_PORT}"]
        return Launch(argv + deployment.spec.backend.args)

    def _flags(self, deployment: ModelDeployment, source: str) -> list[str]:
        self.refuse_all_but_tensor(deployment)
        self.refuse_all_but(
            deployment, quantization="none", cache__host_gib=0.0, cache__dtype=_CACHE_DTYPES, adapters=[]
        )
        spec = deployment.spec
        flags = ["--revision", spec.model.revision]
        for name in deployment.served_names:
            flags += ["--served-model-name", name]
        if spec.context.max_tokens is not None:
            flags += ["--max-model-len", str(spec.context.max_tokens)]
        if spec.parallelism.tensor > 1:
            flags += ["--tensor-parallel-size", str(spec.parallelism.tensor)]
        if spec.cache.dtype != "auto":
            flags += ["--kv-cache-dtype", spec.cache.dtype]
        return flags + generation_config(spec.sampling)
