"""Our own engine."""

import sys

from headwater.backends.base import Backend, LoadMetrics, Reading
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

    def command(self, deployment: ModelDeployment, *, port: int, events_port: int | None = None) -> list[str]:
        spec = deployment.spec
        self.refuse_all_but(
            deployment,
            parallelism__tensor=1,
            parallelism__nodes=1,
            quantization="none",
            cache__host_gib=0.0,
            cache__dtype="auto",
            adapters=[],
        )
        source = self.local_source(deployment, "hf://", "package://", "file://", "random:")
        argv = [sys.executable, "-m", "headwater", "serve", source, "--port", str(port)]
        argv += ["--revision", spec.model.revision]
        for name in deployment.served_names:
            argv += ["--served-model-name", name]
        if spec.context.max_tokens is not None:
            argv += ["--max-model-len", str(spec.context.max_tokens)]
        if events_port is not None:
            argv += ["--kv-events", f"tcp://127.0.0.1:{events_port}"]
        return argv + spec.backend.args
