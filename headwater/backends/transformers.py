"""`transformers serve`, from version 5 on: the widest choice of models, and the barest server.

It has no metrics page, tells neither cached tokens nor KV events, answers 422 to fields it does not know, and answers
only to the model's own name. With --continuous-batching it would have whoever comes first choose temperature, top_p and
seed for all, know no stop strings, and take 60 to 90 % of all memory for its cache, the node's where it has no GPU.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from headwater.backends.base import ADDRESS_FLAGS, NO_API, Backend, Launch, Pod
from headwater.backends.dialects.transformers import TransformersDialect
from headwater.resource import ModelDeployment
from headwater.validation import found

_MODELS = "/serve"


class Transformers(Backend):
    name = "transformers"
    metrics_path = None
    reports_cached_tokens = False
    publishes_kv_events = False
    streams_usage = False  # Its last piece of content tells it anyway.
    published = "headwater-transformers:5.24.0"  # images/Containerfile.transformers
    needs_gpu = False
    dialect = TransformersDialect()
    apis = NO_API  # its responses know neither `text` nor `previous_response_id`
    rank_header = None
    own_flags = ADDRESS_FLAGS
    free_flags: ClassVar[Mapping[str, str]] = {
        "--continuous-batching": "we leave it out; who knows its price may have it"
    }

    def command(self, deployment: ModelDeployment, *, port: int, events: str | None = None) -> list[str]:
        if events is not None:
            raise self.unsupported(deployment, "spec.backend.type", "publishes no KV events")
        self.refuse_all_but(deployment, model__revision="main")
        model = self.local_source(deployment, "hf://", "file://").removeprefix("hf://")
        return self._serve(deployment, model, "127.0.0.1", port)

    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        batching = [] if pod.guarded else ["--continuous-batching"]
        if not pod.mounted:
            self.refuse_all_but(deployment, model__revision="main")
            return Launch(self._serve(deployment, pod.model.removeprefix("hf://"), "0.0.0.0", pod.port, batching))
        # A folder of that name in the working directory: the only way to choose the one name that it answers to.
        self.refuse_all_but(deployment, model__aliases=[])
        argv = self._serve(deployment, deployment.name, "0.0.0.0", pod.port, batching)
        return Launch(argv, model_folder=f"{_MODELS}/{deployment.name}")

    def _serve(
        self, deployment: ModelDeployment, model: str, host: str, port: int, further: Sequence[str] = ()
    ) -> list[str]:
        self.refuse_all_but(
            deployment,
            parallelism__tensor=1,
            parallelism__nodes=1,
            context__max_tokens=None,
            quantization="none",
            cache__host_gib=0.0,
            cache__dtype="auto",
            adapters=[],
        )
        self.refuse_all_but_tensor(deployment)
        self.refuse_sampling(deployment)
        if model not in deployment.served_names:
            message = f"answers to no name but {found(model)}: it must be among them"
            raise self.unsupported(deployment, "spec.model.aliases", message)
        argv = ["transformers", "serve", model, "--host", host, "--port", str(port), *further]
        return argv + deployment.spec.backend.args
