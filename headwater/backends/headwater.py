"""Our own engine."""

import sys

from headwater.backends.base import Backend, Launch, LoadMetrics, Pod, Reading, generation_config
from headwater.resource import ModelDeployment


class Headwater(Backend):
    name = "headwater"
    ready_path = "/ready"
    metrics = LoadMetrics(
        running=(Reading("headwater_engine_requests_running"),),
        waiting=(Reading("headwater_engine_requests_waiting"),),
        cache_usage=(Reading("headwater_engine_kv_cache_usage"),),
        total_blocks=(Reading("headwater_engine_kv_blocks"),),
        block_size=(Reading("headwater_engine_block_size"),),
    )
    needs_gpu = False
    pod_sources = ("hf://", "package://", "file://", "random:")

    def command(self, deployment: ModelDeployment, *, port: int, events_port: int | None = None) -> list[str]:
        source = self.local_source(deployment, *self.pod_sources)
        argv = [sys.executable, "-m", "headwater", "serve", source, "--port", str(port)]
        argv += self._flags(deployment, source)
        if events_port is not None:
            argv += ["--kv-events", f"tcp://127.0.0.1:{events_port}"]
        return argv + deployment.spec.backend.args

    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        argv = ["headwater", "serve", pod.model, "--host", "0.0.0.0", "--port", str(pod.port)]
        argv += self._flags(deployment, pod.model)
        if pod.events_port is not None:
            argv += ["--kv-events", f"tcp://*:{pod.events_port}"]
        argv += ["--shutdown-timeout", str(pod.drain)]
        if pod.threads is not None:
            argv += ["--threads", str(pod.threads)]  # else one for each core of the node, which wait for one another
        return Launch(argv + deployment.spec.backend.args)

    def _flags(self, deployment: ModelDeployment, source: str) -> list[str]:
        self.refuse_all_but(
            deployment,
            parallelism__tensor=1,
            parallelism__nodes=1,
            quantization="none",
            cache__host_gib=0.0,
            cache__dtype="auto",
            adapters=[],
        )
        flags = ["--revision", deployment.spec.model.revision]
        for name in deployment.served_names:
            flags += ["--served-model-name", name]
        if deployment.spec.context.max_tokens is not None:
            flags += ["--max-model-len", str(deployment.spec.context.max_tokens)]
        return flags + generation_config(deployment.spec.sampling)
