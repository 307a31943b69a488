"""Text Generation Inference, version 3, as `text-generation-launcher`.

It answers to any name: what is no name of an adapter is the model itself. It tells neither its KV use nor what tokens
were cached. Folders are shown to it in the words of transformers 4.
"""

import inspect
import sys
import tempfile
from collections.abc import Mapping
from typing import ClassVar

from headwater.backends.base import NO_API, WHERE, Backend, Launch, LoadMetrics, Pod, Reading, hub_name_or_path
from headwater.backends.dialects.tgi import TGIDialect
from headwater.backends.views import tgi as view
from headwater.resource import Adapter, ModelDeployment

_OVERLOADED = "Model is overloaded"
_VIEW = "/tmp/view"
"""In a pod, where all of that goes with it."""
_CACHE_DTYPES = {"auto": "auto", "fp8": "fp8_e4m3fn"}


class TGI(Backend):
    name = "tgi"
    alive_path = "/info"
    metrics = LoadMetrics(running=(Reading("tgi_batch_current_size"),), waiting=(Reading("tgi_queue_size"),))
    reports_cached_tokens = False
    publishes_kv_events = False
    published = "huggingface/text-generation-inference:3.3.7"
    drains = 90  # its launcher's default, by which pods were made before render version 5
    loads_adapters = "start"
    answers_to_any_name = True
    own_flags: ClassVar[Mapping[str, str]] = {
        "--hostname": WHERE,
        "--port": WHERE,
        "-p": WHERE,
        "--model-id": "spec.model.source",
        "--revision": "spec.model.revision",
        **dict.fromkeys(("--num-shard", "--sharded"), "spec.parallelism.tensor"),
        **dict.fromkeys(("--max-input-tokens", "--max-input-length", "--max-total-tokens"), "spec.context.maxTokens"),
        "--quantize": "spec.quantization",
        "--cuda-memory-fraction": "spec.cache.fraction",
        "--kv-cache-dtype": "spec.cache.dtype",
        "--lora-adapters": "spec.adapters",
        **dict.fromkeys(("--graceful-termination-timeout", "-g"), "spec.drainTimeout"),
    }
    no_statistics: ClassVar[Mapping[str, str]] = {"DO_NOT_TRACK": "1", "USAGE_STATS": "off"}
    dialect = TGIDialect()
    apis = NO_API
    rank_header = None

    def command(self, deployment: ModelDeployment, *, port: int, events: str | None = None) -> list[str]:
        if events is not None:
            raise self.unsupported(deployment, "spec.backend.type", "publishes no KV events")
        self.refuse_all_but(deployment, model__aliases=[])  # the router is told one name
        source = self.local_source(deployment, "hf://", "file://")
        if source.startswith("hf://"):
            return self._serve(deployment, source, "127.0.0.1", port)
        folder = f"{tempfile.gettempdir()}/headwater-view-{port}"
        writer = [sys.executable, "-m", view.__name__, source, folder]
        return writer + self._serve(deployment, folder, "127.0.0.1", port)

    def environment(self, deployment: ModelDeployment) -> Mapping[str, str]:
        return self._adapters(deployment) | deployment.spec.backend.env

    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        if pod.views and pod.mounted:
            # By the Python of the image, and not in a container before it, whose image would have to be pinned, too.
            argv = ["python3", "-c", inspect.getsource(view), pod.model, _VIEW]
            argv += self._serve(deployment, _VIEW, "0.0.0.0", pod.port)
        else:
            argv = self._serve(deployment, pod.model, "0.0.0.0", pod.port)
        if pod.guarded:
            argv += ["--graceful-termination-timeout", str(pod.drain)]
        # The image sets this one, which would win over HF_HOME, to a folder that is not ours to write to.
        cache = {"HUGGINGFACE_HUB_CACHE": "$(HF_HOME)/hub"}
        return Launch(argv, cache | self._adapters(deployment), drains=pod.drain if pod.guarded else None)

    def meant_status(self, status: int, message: str) -> int:
        # In streams, it says 422 of all that it does not do.
        return 429 if message == _OVERLOADED else status

    def _serve(self, deployment: ModelDeployment, source: str, host: str, port: int) -> list[str]:
        self.refuse_all_but(deployment, parallelism__nodes=1, cache__host_gib=0.0, cache__dtype=tuple(_CACHE_DTYPES))
        self.refuse_all_but_tensor(deployment)
        self.refuse_sampling(deployment)
        spec = deployment.spec
        argv = ["text-generation-launcher", "--model-id", hub_name_or_path(source)]
        argv += ["--hostname", host, "--port", str(port)]  # else $HOSTNAME, which is the pod's name
        argv += ["--num-shard", str(spec.parallelism.tensor), "--cuda-memory-fraction", str(spec.cache.fraction)]
        if source.startswith("hf://"):
            argv += ["--revision", spec.model.revision]
        if (most := spec.context.max_tokens) is not None:
            argv += ["--max-input-tokens", str(max(most - 1, 1)), "--max-total-tokens", str(most)]
        if spec.quantization != "none":
            argv += ["--quantize", spec.quantization]
        if spec.cache.dtype != "auto":
            argv += ["--kv-cache-dtype", _CACHE_DTYPES[spec.cache.dtype]]
        return argv + spec.backend.args

    def _adapters(self, deployment: ModelDeployment) -> dict[str, str]:
        adapters = deployment.spec.adapters
        return {"LORA_ADAPTERS": ",".join(self._adapter(deployment, each) for each in adapters)} if adapters else {}

    def _adapter(self, deployment: ModelDeployment, adapter: Adapter) -> str:
        kind, _, place = adapter.source.partition("://")
        if kind == "file":
            return f"{adapter.name}={place}"
        if kind == "hf" and adapter.name == place:
            return place
        message = f"knows an adapter of the hub by no other name than its own: call {adapter.source} {place!r}"
        if kind != "hf":
            message = f"loads adapters from hf:// and file:// here, not {adapter.source}"
        raise self.unsupported(deployment, "spec.adapters", message)
