"""TensorRT-LLM, as `trtllm-serve`: its PyTorch backend, or an engine that was built before.

Engines are what it began with. Newer versions have only the PyTorch backend and build nothing, so an engine is built
where the deployment asks for that backend: `spec.backend.args: [--backend, tensorrt]`.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from headwater.backends.base import (
    A_FILE,
    ADDRESS_FLAGS,
    FILES,
    MODEL_FLAGS,
    NAME_FLAGS,
    NO_API,
    Backend,
    Launch,
    LoadMetrics,
    Pod,
    Reading,
    hub_name_or_path,
)
from headwater.backends.dialects.tensorrt_llm import TensorRTLLMDialect
from headwater.resource import ModelDeployment

_CONFIG = "trtllm.yaml"
_ENGINE_BACKENDS = {"tensorrt", "trt"}

_BUILD = """\
import json, sys
from tensorrt_llm._tensorrt_engine import LLM
from tensorrt_llm.llmapi import BuildConfig
wish = json.loads(sys.argv[1])
LLM(build_config=BuildConfig(**wish["build"]), **wish["model"]).save(wish["folder"])
"""
"""The tool for it, trtllm-build, takes checkpoints that another script, one a model family, has converted."""


class TensorRTLLM(Backend):
    name = "tensorrt-llm"
    metrics_path = "/prometheus/metrics"
    metrics = LoadMetrics(
        running=(Reading("trtllm_num_requests_running"),),
        waiting=(Reading("trtllm_num_requests_waiting"),),
        cache_usage=(Reading("trtllm_kv_cache_utilization"),),
    )
    publishes_kv_events = False
    dialect = TensorRTLLMDialect()
    apis = NO_API  # some versions have responses, and no form of the answer in them
    rank_header = None
    own_flags: ClassVar[Mapping[str, str]] = {
        **ADDRESS_FLAGS,
        **NAME_FLAGS,
        **MODEL_FLAGS,
        "--tokenizer": "spec.model.source",
        **dict.fromkeys(("--extra-llm-api-options", "--config"), A_FILE),
        **dict.fromkeys(("--tp-size", "--tensor-parallel-size"), "spec.parallelism.tensor"),
        **dict.fromkeys(("--pp-size", "--pipeline-parallel-size"), "spec.parallelism.pipeline"),
        "--enable-attention-dp": "spec.parallelism.data",
        **dict.fromkeys(("--ep-size", "--moe-expert-parallel-size"), "spec.parallelism.expert"),
        "--max-seq-len": "spec.context.maxTokens",
        **dict.fromkeys(("--kv-cache-free-gpu-memory-fraction", "--free-gpu-memory-fraction"), "spec.cache.fraction"),
        "--kv-cache-dtype": "spec.cache.dtype",
    }
    published = "nvidia/tensorrt-llm/release:1.2.0"
    revisions_since = (1, 2)  # its issue 9463
    drains = 0  # nothing says that it waits

    def command(self, deployment: ModelDeployment, *, port: int, events: str | None = None) -> list[str]:
        if events is not None:
            raise self.unsupported(deployment, "spec.backend.type", "publishes no KV events")
        self.refuse_all_but(deployment, cache__dtype="auto", cache__host_gib=0.0, parallelism__data=1)
        source = self.local_source(deployment, "hf://", "file://")
        argv = self._serve(deployment, source, "127.0.0.1", port)
        argv += ["--kv_cache_free_gpu_memory_fraction", str(deployment.spec.cache.fraction)]
        return argv + deployment.spec.backend.args

    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        if not self._wants_engine(deployment):
            argv = self._serve(deployment, pod.model, "0.0.0.0", pod.port, guarded=pod.guarded)
        elif pod.engine is None:
            raise ValueError(f"{deployment.name}: the engine is not built yet")
        else:
            argv = self._serve(deployment, pod.engine, "0.0.0.0", pod.port)
            argv += ["--tokenizer", hub_name_or_path(pod.model)]
        argv += ["--extra_llm_api_options", f"{FILES}/{_CONFIG}"]
        return Launch(argv + deployment.spec.backend.args, files={_CONFIG: self._config(deployment)})

    def build(self, deployment: ModelDeployment, pod: Pod, folder: str) -> Launch | None:
        if not self._wants_engine(deployment):
            return None
        self._refuse(deployment)
        spec = deployment.spec
        model: dict[str, Any] = {"model": hub_name_or_path(pod.model), "tensor_parallel_size": spec.parallelism.tensor}
        if pod.model.startswith("hf://"):
            model["revision"] = spec.model.revision
        shape = {} if spec.context.max_tokens is None else {"max_seq_len": spec.context.max_tokens}
        wish = {"model": model, "build": shape, "folder": folder}
        return Launch(["python3", "-c", _BUILD, json.dumps(wish)])

    def _serve(
        self, deployment: ModelDeployment, source: str, host: str, port: int, *, guarded: bool = True
    ) -> list[str]:
        self._refuse(deployment)
        spec = deployment.spec
        argv = ["trtllm-serve", hub_name_or_path(source), "--host", host, "--port", str(port)]
        together = spec.parallelism.tensor * spec.parallelism.data
        argv += ["--tp_size", str(together)]
        if spec.parallelism.pipeline > 1:
            argv += ["--pp_size", str(spec.parallelism.pipeline)]
        if spec.parallelism.expert:
            argv += ["--ep_size", str(together)]
        if source.startswith("hf://") and (spec.model.revision != "main" or not guarded):
            argv += ["--revision", spec.model.revision]
        if spec.context.max_tokens is not None:
            argv += ["--max_seq_len", str(spec.context.max_tokens)]
        return argv

    def _refuse(self, deployment: ModelDeployment) -> None:
        self.refuse_all_but(
            deployment,
            parallelism__nodes=1,
            quantization="none",  # it sees by itself how a checkpoint is quantized
            cache__dtype=("auto", "fp8"),
            adapters=[],
        )
        if deployment.spec.parallelism.data > 1:
            self.refuse_all_but(deployment, parallelism__tensor=1)  # attention is shared by all GPUs or by none
        if self._wants_engine(deployment):
            self.refuse_all_but_tensor(deployment)
        self.refuse_sampling(deployment)

    def _config(self, deployment: ModelDeployment) -> str:
        """What has no flag: its metrics, and the cache as a whole."""
        cache = deployment.spec.cache
        kv: dict[str, Any] = {"free_gpu_memory_fraction": cache.fraction}
        if cache.dtype != "auto":
            kv["dtype"] = cache.dtype
        if cache.host_gib:
            kv["host_cache_size"] = int(cache.host_gib * 2**30)
        config: dict[str, Any] = {"return_perf_metrics": True, "kv_cache_config": kv}
        if deployment.spec.parallelism.data > 1:
            config["enable_attention_dp"] = True
        if not self._wants_engine(deployment):
            config["enable_iter_perf_stats"] = True  # an engine always counts, and does not know the field
        text: str = yaml.safe_dump(config)
        return text

    def _wants_engine(self, deployment: ModelDeployment) -> bool:
        """The last choice counts, as it does for the server."""
        choices = [""]
        for flag, value in itertools.pairwise([*deployment.spec.backend.args, ""]):
            if flag == "--backend":
                choices.append(value)
            elif flag.startswith("--backend="):
                choices.append(flag.removeprefix("--backend="))
        return choices[-1] in _ENGINE_BACKENDS
