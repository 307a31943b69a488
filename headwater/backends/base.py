"""What differs between inference servers, and nothing else: a backend is one file beside this one."""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, NamedTuple

from headwater.backends.dialects.base import Dialect
from headwater.backends.flags import meant
from headwater.resource import ModelDeployment, ResourceError, Sampling
from headwater.validation import found

GROUP_RANK: Final = "GROUP_RANK"
"""Variable with a pod's number within its group; an argument refers to it as $(GROUP_RANK)."""
FILES: Final = "/etc/headwater"
"""Folder of the files of a `Launch`."""
ADMIN_KEY: Final = "HEADWATER_ADMIN_KEY"
"""Variable with the key that a server asks for before its adapters, its cache or its weights are touched."""

APIS: Final = frozenset(("/v1/responses", "/v1/messages", "/v1/messages/count_tokens"))
"""Paths of other APIs than chat completions for the same conversations."""
NO_API: Final[frozenset[str]] = frozenset()

_VERSION: Final = re.compile(r":v?([0-9]+)\.([0-9]+)[^/:]*$")
"""Of an image. A tag that is no version, and a digest, tell nothing."""

Device = Literal["cpu", "cuda", "unknown"]


class UnsupportedError(ResourceError):
    """The deployment wants something that its backend cannot do; the message names the field."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a number stands on a server's metrics page: in a sample's value, or in one of its labels."""

    metric: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterReading:
    """Where the adapters in use stand: by name, with commas between, in labels. The value is when that was."""

    metric: str
    waiting: str
    running: str
    slots: str
    """The label that tells how many can be in use at once."""


@dataclass(frozen=True, slots=True)
class LoadMetrics:
    """What a server says of its load. Of each the first reading that is there counts: later ones are older names."""

    running: tuple[Reading, ...] = ()
    waiting: tuple[Reading, ...] = ()
    cache_usage: tuple[Reading, ...] = ()
    """0 to 1."""
    total_blocks: tuple[Reading, ...] = ()
    """KV blocks, used or not."""
    total_tokens: tuple[Reading, ...] = ()
    """Tokens in all of them, where they are not told in blocks."""
    block_size: tuple[Reading, ...] = ()
    """Tokens in one of them."""
    of_all: tuple[tuple[str, str], ...] = ()
    """Labels by which a server tells a number once more for a part of it, and what they say of the whole."""
    most_running: tuple[Reading, ...] = ()
    """Requests that run at once."""
    rank: str | None = None
    """The label that tells which data-parallel engine a sample is of."""
    part: str | None = None
    """The label that numbers those who share such an engine, each of whom may tell its numbers: the first one's count.
    They may be numbered on from engine to engine."""
    token_seconds: tuple[Reading, ...] = ()
    """From one token to the next, of all answers since it began; so for the next."""
    tokens: tuple[Reading, ...] = ()
    adapters: AdapterReading | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """What a server must be told of its pod, beside the deployment."""

    model: str
    """A path in the pod, or a source that the server fetches by itself."""
    mounted: bool
    """Whether that path is in a volume, which can be mounted elsewhere, too."""
    port: int
    events_port: int | None
    """Where KV events are published; further data-parallel ranks, at the ports behind it. None: nowhere."""
    drain: int
    """Seconds that running answers get after SIGTERM."""
    device: Device | None = None
    """What `spec.resources` give the server to compute on. None: its render version told it nothing of that."""
    threads: int | None = None
    """What the pod may use of the CPU. None: no limit."""
    leader: str | None = None
    """Address of rank 0 where a replica is several pods."""
    engine: str | None = None
    """Folder of a finished TensorRT-LLM engine."""
    admin_key: bool = False
    """Whether the container has the variable ADMIN_KEY."""
    replay_port: int | None = None
    """Where KV events are repeated for those who ask; further ranks as above. None: nowhere."""
    views: bool = False
    """Whether the server gets a view of a folder that it would not read rightly (`backends.views`)."""
    guarded: bool = False
    """Whether the server fetches nothing from where a request says, and has only the flags that it needs. It was
    otherwise before render version 5."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started in its pod."""

    argv: list[str]
    """Without a shell; refers to variables of the container as $(NAME)."""
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Contents by name, in the folder FILES."""
    model_folder: str | None = None
    """Where the model's volume has to show the model, too. The server is started in the folder above."""
    drains: float | None = None
    """Seconds that it waits for running answers after SIGTERM, where it is told so. None: as it does by itself."""


class Call(NamedTuple):
    """An HTTP request to a server."""

    method: str
    path: str
    body: dict[str, str]


class Backend(ABC):
    name: ClassVar[str]
    """As in `spec.backend.type`."""
    health_path: ClassVar[str] = "/health"
    """Answers 200 while the server works."""
    health_timeout: ClassVar[int] = 10
    """Seconds that a server which works may take for that answer."""
    ready_path: ClassVar[str] = "/health"
    """Answers 200 while the server takes requests: weights loaded, not draining."""
    alive_path: ClassVar[str | None] = None
    """Where `ready_path` waits behind a step that is under way: one that answers 200 whatever is computed, for as long
    as there is a process. None: `ready_path` is such a one."""
    ready_path_computes: ClassVar[bool] = False
    """Whether each look at `ready_path` costs a token, so that a server which is ready is mostly asked `alive_path`."""
    metrics_path: ClassVar[str | None] = "/metrics"
    """A Prometheus page; None: there is none."""
    metrics: ClassVar[LoadMetrics] = LoadMetrics()
    reports_cached_tokens: ClassVar[bool] = True
    """Whether `usage.prompt_tokens_details.cached_tokens` is there, if started by `command` or `launch`."""
    publishes_kv_events: ClassVar[bool] = True
    """Whether `command` and `launch` can have it publish KV events."""
    repeats_kv_events: ClassVar[bool] = False
    """Whether `launch` knows what to do with a `replay_port`. Our own engine tells newcomers all that it holds."""
    takes_admin_key: ClassVar[bool] = False
    """Whether `launch` can have the server ask for an ADMIN_KEY, and calls such as `load_adapter` have to bring it."""
    streams_usage: ClassVar[bool] = True
    """Whether a stream tells the usage in a last event of its own, if `stream_options.include_usage` asks for it."""

    image: ClassVar[str | None] = None
    """For pods that name none. None: there is none to be had without the host of a registry."""
    published: ClassVar[str | None] = None
    """Name and tag of the image where `image` is None; the host of its registry is the operator's matter."""
    needs_gpu: ClassVar[bool] = True
    pod_sources: ClassVar[tuple[str, ...]] = ("hf://", "file://")
    """Beginnings of sources that the server loads by itself in a pod."""
    drains: ClassVar[float] = math.inf
    """Seconds that the server waits for running answers after SIGTERM, at most; 0: it does not wait."""
    workers_answer_probes: ClassVar[bool] = False
    """Whether the other pods of a group serve `health_path` and `ready_path` as rank 0 does."""
    loads_adapters: ClassVar[Literal["runtime", "start", "never"]] = "never"
    """runtime: by `load_adapter`, while it serves; start: only those that `launch` names."""
    answers_to_any_name: ClassVar[bool] = False
    """Whether a `model` that it does not know is taken for the model itself, and not refused."""
    dialect: ClassVar[Dialect | None]
    """How its API differs from OpenAI's. None: it takes all ways to ask for what it can do."""
    apis: ClassVar[frozenset[str]]
    """Of `APIS`, those that it has itself, as they are meant. The others the gateway makes of chat completions."""
    rank_header: ClassVar[str | None]
    """The request header by which it is told, in digits, which of its data-parallel engines is to answer, where its
    metrics tell them apart (`LoadMetrics.rank`). None: it cannot be told; who is at its address chooses."""
    own_flags: ClassVar[Mapping[str, str]]
    """Flags that `spec.backend.args` may not hold, with dashes, under all of their names: those that we start the
    server with, those that other fields stand for, and what says it instead."""
    free_flags: ClassVar[Mapping[str, str]] = {}
    """Flags that `launch` may write and that arguments may say otherwise, nevertheless, and why."""
    no_statistics: ClassVar[Mapping[str, str]] = {"DO_NOT_TRACK": "1"}
    """Variables by which the server, and the libraries below it, tell nobody what it is used for."""
    revisions_since: ClassVar[tuple[int, int]] = (0, 0)
    """The first version that can be told which revision of a model to fetch."""
    adapters_prefix: ClassVar[str] = ""
    """Of the path of the calls that load and unload an adapter."""

    @abstractmethod
    def command(self, deployment: ModelDeployment, *, port: int, events: str | None = None) -> list[str]:
        """How to serve the deployment as one local process, on the loopback interface.

        `events`: the ZMQ address, `ipc://PATH`, where to publish KV events. Raises UnsupportedError.
        """

    @abstractmethod
    def launch(self, deployment: ModelDeployment, pod: Pod) -> Launch:
        """How to serve the deployment in a pod, on all interfaces. Raises UnsupportedError.

        What is returned for a deployment is pinned: where it has to change, the operator's render version has to.
        """

    def build(self, deployment: ModelDeployment, pod: Pod, folder: str) -> Launch | None:
        """How to make, once for all replicas, what `launch` finds in `pod.engine`. None: nothing. Raises
        UnsupportedError.
        """
        return None

    def environment(self, deployment: ModelDeployment) -> Mapping[str, str]:
        """Environment variables for a local process, on top of our own."""
        return deployment.spec.backend.env

    def load_adapter(self, name: str, path: str) -> Call:
        """Loads an adapter while the server runs, where `loads_adapters` is "runtime"."""
        return Call("POST", f"{self.adapters_prefix}/load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload_adapter(self, name: str) -> Call:
        return Call("POST", f"{self.adapters_prefix}/unload_lora_adapter", {"lora_name": name})

    def adapter_name(self, model: str, adapter: str) -> str:
        """What a request names to reach an adapter of `model`."""
        return adapter

    def adapters_of(self, models: Mapping[str, Any]) -> set[str]:
        """Names of the adapters that are loaded, by the server's answer to GET /v1/models."""
        return {card["id"] for card in models.get("data", []) if card.get("parent")}

    def meant_status(self, status: int, message: str) -> int:
        """The HTTP status that an error stands for, which came with this one."""
        return status

    def unsupported(self, deployment: ModelDeployment, field: str, message: str) -> UnsupportedError:
        return UnsupportedError(f"{deployment.name}: {field}: the {self.name} backend {message}")

    def local_source(self, deployment: ModelDeployment, *prefixes: str) -> str:
        """The source of the weights, if a local process of this server can load what begins like this.

        A file:// is cut to its path. Raises UnsupportedError for others.
        """
        source = deployment.spec.model.source
        if not source.startswith(prefixes):
            allowed = ", ".join(prefixes)
            raise self.unsupported(deployment, "spec.model.source", f"loads {allowed} here; found {found(source)}")
        return source.removeprefix("file://")

    def refuse_all_but(self, deployment: ModelDeployment, **allowed: object) -> None:
        """Raise UnsupportedError for a field that asks for more than this server does.

        Fields are named as in `Spec`, with two underscores between the parts: `parallelism__tensor=1`. A tuple allows
        each of its values.
        """
        for path, only in allowed.items():
            value: Any = deployment.spec
            field = "spec"
            for part in path.split("__"):
                field += f".{type(value).model_fields[part].alias}"
                value = getattr(value, part)
            choices = only if isinstance(only, tuple) else (only,)
            if value not in choices:
                known = " and ".join("none" if choice == [] else found(choice) for choice in choices)
                raise self.unsupported(deployment, field, f"knows only {known} here; found {found(value)}")

    def refuse_all_but_tensor(self, deployment: ModelDeployment) -> None:
        """Raise UnsupportedError where a replica is spread in another way than by parts of its layers."""
        self.refuse_all_but(deployment, parallelism__pipeline=1, parallelism__data=1, parallelism__expert=False)

    def refuse_own_flags(self, deployment: ModelDeployment) -> None:
        """Raise UnsupportedError where `spec.backend.args` hold one of `own_flags`, in whatever form."""
        for argument in deployment.spec.backend.args:
            if (flag := meant(argument, self.own_flags)) is not None:
                given = argument.partition("=")[0]
                told = given if given.replace("_", "-") == flag else f"{found(given)}, which is {flag},"
                message = f"gets {told} from {self.own_flags[flag]}; leave it out"
                raise self.unsupported(deployment, "spec.backend.args", message)

    def refuse_version(self, deployment: ModelDeployment, image: str) -> None:
        """Raise UnsupportedError where the version that the image's tag tells of cannot do what the spec asks for."""
        model, found = deployment.spec.model, _VERSION.search(image)
        by_itself = model.source.startswith("hf://") and not deployment.spec.weights.cached
        if by_itself and model.revision != "main" and found and (int(found[1]), int(found[2])) < self.revisions_since:
            version = ".".join(map(str, self.revisions_since))
            hint = f"needs version {version}: name that in spec.backend, or leave the fetching to us (weights.cached)"
            raise self.unsupported(deployment, "spec.model.revision", hint)

    def refuse_sampling(self, deployment: ModelDeployment) -> None:
        """Raise UnsupportedError where `spec.sampling` asks for anything."""
        asked = deployment.spec.sampling.model_dump(by_alias=True, exclude_none=True)
        if asked:
            hint = "takes no defaults for sampling: leave it to the requests, or to the model's generation_config.json"
            raise self.unsupported(deployment, f"spec.sampling.{next(iter(asked))}", hint)


WHERE: Final = "Headwater, since the gateway looks for it there"
ADDRESS_FLAGS: Final = {"--host": WHERE, "--port": WHERE}
MODEL_FLAGS: Final = {"--model": "spec.model.source", "--revision": "spec.model.revision"}
NAME_FLAGS: Final = {"--served-model-name": "metadata.name and spec.model.aliases"}
EVENTS: Final = "spec.routing.policy and the operator's --kv-events"
COUNTED: Final = "Headwater, which counts by it"
A_FILE: Final = "Headwater, since a file of flags would go past all that is checked here: write them as args"


def generation_config(sampling: Sampling) -> list[str]:
    """`spec.sampling` as a flag of vLLM, which our engine has, too: under the names of generation_config.json."""
    chosen = sampling.model_dump(exclude_none=True)
    if "max_tokens" in chosen:
        chosen["max_new_tokens"] = chosen.pop("max_tokens")
    return ["--override-generation-config", json.dumps(chosen)] if chosen else []


def hub_name_or_path(source: str) -> str:
    """What most servers take as a model: a name on the hub, or a folder."""
    return source.removeprefix("hf://").removeprefix("file://")
