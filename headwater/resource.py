"""ModelDeployment: one model and how it is served, as a user writes it down.

The same file is a Kubernetes resource for the operator and the input of `headwater up`. Fields are camelCase in YAML
and snake_case here. Unknown fields are refused, because a misspelt one would be a wish silently not granted; a field
that is null counts as left out, as it does for the API server.

The CRD is made from what stands here by `headwater.crd`: the text below a field is what `kubectl explain` says of it.
"""

import difflib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from headwater import rules
from headwater.validation import field_path, finding, found
from headwater.values import (
    MAX_REPLICAS,
    RULES,
    Amount,
    Bytes,
    Distinct,
    ImageName,
    ImageTag,
    Name,
    NamespaceName,
    ObjectName,
    Revision,
    Rule,
    SecretKeyName,
    ServedName,
    Shaped,
    Span,
    Variables,
    broken,
)
from headwater.values import Duration as Duration
from headwater.values import Source as Source

API_VERSION: Final = "headwater.dev/v1alpha1"
KIND: Final = "ModelDeployment"


class ResourceError(Exception):
    """A file cannot be used. One line for each mistake: file, line, field, what is allowed and what was found."""


BackendType = Literal["headwater", "vllm", "sglang", "tgi", "tensorrt-llm", "transformers", "auto"]
Quantization = Literal["none", "fp8", "awq", "gptq"]
# One for each file of a policy in router/headwater_router/picker/: what else names policies follows from here.
RoutingPolicy = Literal["prefix", "round_robin", "least_loaded", "session"]
RoutingObjective = Literal["latency", "first-token", "throughput"]
RoutingShare = Literal["Weight", "Auto"]

_Window = Annotated[timedelta, Span("1s", "1h")]
_Delay = Annotated[timedelta, Span("0s", "24h")]
_MOST: Final = 1_000_000
"""Where a number needs no bound of its own, so that no sum of them overflows."""


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, alias_generator=to_camel, use_attribute_docstrings=True
    )

    bound_by: ClassVar[tuple[Rule, ...]] = ()
    """What must hold of the fields together."""

    @model_validator(mode="before")
    @classmethod
    def know_every_field(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        allowed = [field.alias or name for name, field in cls.model_fields.items()]
        for name in data:
            if name not in allowed and cls.model_config["extra"] != "allow":
                close = difflib.get_close_matches(str(name), allowed, n=1)
                hint = f"did you mean `{close[0]}`? " if close else ""
                raise broken(f"unknown field; {hint}Allowed: {', '.join(allowed)}", str(name))
        return {name: value for name, value in data.items() if value is not None}

    @model_validator(mode="after")
    def follow_rules(self) -> "_Part":
        for rule in self.bound_by:
            if rule.holds and not rule.holds(self):
                raise rule.broken(*self._scalar(rule.field))
        return self

    def _scalar(self, field: str) -> list[Any]:
        """What stands in a field, where it is short enough to be told."""
        name = next((name for name, each in type(self).model_fields.items() if each.alias == field), None)
        value = getattr(self, name) if name else None
        return [value] if isinstance(value, int | str) else []

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        written = handler(schema)
        if cls.bound_by:
            handler.resolve_ref_schema(written)[RULES] = [rule.schema() for rule in cls.bound_by]
        return written


class Metadata(_Part):
    model_config = ConfigDict(extra="allow")  # what Kubernetes keeps here is its own matter

    name: Name
    namespace: str | None = None
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})


class SecretKey(_Part):
    """A key of a Secret. The operator refers to it and never reads it."""

    name: ObjectName
    """Name of the Secret, in the ModelDeployment's own namespace."""
    key: SecretKeyName = "token"
    """Key in the Secret under which the token stands."""


class Model(_Part):
    bound_by = (rules.REVISION_OF_HUB,)

    source: Source
    """Where the weights come from: hf://OWNER/NAME, s3://BUCKET/PATH, oci://REGISTRY/IMAGE, pvc://CLAIM/PATH,
    file://PATH (in the container), package://NAME (an installed Python package), or random:CONFIG (a shape with made-up
    weights). Changing it rolls the replicas."""
    revision: Revision = "main"
    """Branch, tag or commit of an hf:// source."""
    secret_ref: SecretKey | None = None
    """The hub's token, for a model that is not public: a key of a Secret."""
    aliases: Annotated[list[ServedName], Distinct()] = Field(default=[], max_length=32)
    """Further names that clients may send as `model`; the first is the resource's own."""


class Backend(_Part):
    type: BackendType = "auto"
    """The server that runs the model. auto: our own engine where it can do what the resource asks for, else another."""
    image: ImageName | None = None
    """Container image of the server. Left out: the backend's own, where it has one."""
    version: ImageTag | None = None
    """Tag of the image, or its digest (sha256:...), in place of the one that `image` or the backend's own has."""
    args: list[Annotated[str, Field(max_length=8192)]] = Field(default=[], max_length=256)
    """Further flags of the server, behind our own. Those that fields stand for or that we set ourselves are refused."""
    env: Annotated[dict[str, Annotated[str, Field(max_length=32768)]], Variables()] = Field(default={}, max_length=128)
    """Environment variables of the server. Secrets belong into `model.secretRef` or the template."""


class Parallelism(_Part):
    bound_by = (rules.ACCELERATORS_ARE_DIVIDED, rules.KIND_STAYS)

    tensor: int = Field(default=1, ge=1, le=1024)
    """Accelerators that share each layer of one replica, over all its nodes. Without any: processes of our engine."""
    pipeline: int = Field(default=1, ge=1, le=128)
    """Stages that its layers are cut into, one after the other. Each has `tensor` x `data` accelerators."""
    data: int = Field(default=1, ge=1, le=1024)
    """Groups of `tensor` accelerators that each compute the attention of requests of their own. Experts they share."""
    expert: bool = False
    """Whether each accelerator of a stage has some experts whole, and not a part of every expert."""
    nodes: int = Field(default=1, ge=1, le=1024)
    """Machines that these are spread over, one pod on each; must divide `tensor` x `pipeline` x `data`. Cannot change
    between 1 and more."""

    @property
    def accelerators(self) -> int:
        """Of one replica."""
        return self.tensor * self.pipeline * self.data


class Context(_Part):
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Tokens of one request, prompt and output together. Left out: what the model can do."""


class Sampling(_Part):
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0: always the likeliest token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the likeliest tokens that have this much of the probability together."""
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Only so many of the likeliest tokens; 0: all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Only tokens at least this share as likely as the likeliest."""
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    """Above 1: tokens that were there already, in the prompt or the answer, become less likely."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """What tokens that the answer has already lose, with our engine alone."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """The same for each time that they are there."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Output tokens. In vLLM no request gets more."""


class Cache(_Part):
    fraction: float = Field(default=0.9, gt=0, le=1)
    """Share of the accelerator's memory for weights and KV cache together, above 0 and at most 1."""
    host_gib: float = Field(default=0.0, ge=0, le=_MOST, alias="hostGiB")
    """Host memory that evicted KV blocks move to, in GiB for each replica. 0: none."""
    dtype: Literal["auto", "bfloat16", "float16", "float32", "fp8"] = "auto"
    """Number format of the KV cache. auto: that of the model."""


class Adapter(_Part):
    name: ServedName
    """What clients send as `model` to reach the adapter."""
    source: Source
    """Where the adapter's weights come from: a URL as of the model."""


class Weights(_Part):
    cached: bool = True
    """Whether the weights are fetched once, into a volume that all replicas read. false: each replica fetches them."""
    size: Bytes | None = None
    """Size of the volume, such as 50Gi. Left out: the operator's default. Counts when the volume is made."""
    storage_class_name: ObjectName | None = None
    """StorageClass of the volume. Left out: the operator's default, else the cluster's. Counts when it is made."""
    access_mode: Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"] | None = None
    """ReadWriteOnce ties all replicas to one node; ReadOnlyMany has them read a copy of the volume. Left out: the
    operator's default. Counts when the volume is made."""
    keep: bool = True
    """Whether the volume outlives the resource, so that the next one finds the weights there."""


class Autoscaling(_Part):
    bound_by = (rules.BOUNDS_IN_ORDER, rules.PANIC_IS_SHORTER)

    min: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    """Least replicas. 0: none while nobody asks; the gateway holds the request that wakes it."""
    max: int = Field(ge=1, le=MAX_REPLICAS)
    """Most replicas, at least `min`."""
    in_flight_per_replica: int = Field(default=32, ge=1, le=_MOST)
    """Requests in flight that one replica should have."""
    tolerance: float = Field(default=0.1, ge=0, lt=1)
    """Nothing is scaled while the load is within this share of what the replicas are there for."""
    stable_window: _Window = timedelta(seconds=60)
    """The load is the mean over this time, 1s to 1h, ..."""
    panic_window: _Window = timedelta(seconds=6)
    """... or over this shorter one, while that is twice what the replicas are there for. No scaling down then."""
    scale_up_delay: _Delay = timedelta(0)
    """For how long more replicas must have been wanted, at most 24h."""
    scale_down_delay: _Delay = timedelta(minutes=5)
    """For how long fewer replicas must have been wanted, at most 24h."""


class Routing(_Part):
    policy: RoutingPolicy = "prefix"
    """How the gateway chooses a replica for a request."""
    objective: RoutingObjective = "latency"
    """What the prefix policy makes short: all answers to their ends, each one's first token, or all work together."""
    weight: int = Field(default=100, ge=0, le=_MOST)
    """Share of the requests, against other ModelDeployments that serve the same name."""
    share: RoutingShare = "Weight"
    """Auto: the gateway finds the share by itself, for each class of requests, by what they cost here and in others
    that say Auto. The weight is where it begins, and bounds it: no more than twice what it says."""
    shared_with: Annotated[list[NamespaceName], Distinct()] = Field(default=[], max_length=64)
    """Namespaces whose ModelDeployments may serve the names of this one, too, and get their share of its requests; * is
    all. Others that ask for a name that this namespace had first do not get it."""


class Rollout(_Part):
    strategy: Literal["Auto", "Surge", "Replace"] = "Auto"
    """Surge starts a new replica before it stops an old one; Replace stops first, and needs no spare accelerators; Auto
    surges where there is room."""
    paused: bool = False
    """While true, what runs goes on as it is; a changed spec waits."""


class _Claim(_Part):
    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of an entry in the pod's resourceClaims."""
    request: Annotated[str, Field(max_length=253)] | None = None
    """Name of a request in that claim. Left out: all of it."""


class _Resources(_Part):
    limits: dict[str, Amount] = Field(default={}, max_length=32)
    """Most that the container gets, such as nvidia.com/gpu: 2."""
    requests: dict[str, Amount] = Field(default={}, max_length=32)
    """What a node must have free for the container. Left out: `limits`."""
    claims: Annotated[list[_Claim], Distinct("name")] = Field(default=[], max_length=32)
    """Entries of the pod's resourceClaims that the container uses."""


class _PodMetadata(_Part):
    labels: dict[str, str] = Field(default={})
    """Labels of the pods."""
    annotations: dict[str, str] = Field(default={})
    """Annotations of the pods."""


class _PodTemplate(_Part):
    metadata: Annotated[dict[str, Any], Shaped(_PodMetadata)] = Field(default={})
    """Further labels and annotations of the pods."""
    spec: dict[str, Any] = Field(default={})
    """Fields of a PodSpec. The server's container is called `engine`."""


class Spec(_Part):
    bound_by = (rules.ONE_SAYS_HOW_MANY, rules.WEIGHTS_REACH_ALL_NODES, rules.GPUS_ARE_USED)

    model: Model
    """The model, and the names under which it is served."""
    backend: Backend = Backend()
    """The server that runs the model, and what it gets beside our own flags."""
    replicas: int | None = Field(default=None, ge=0, le=MAX_REPLICAS)
    """How many replicas there are. Left out: one, or what `autoscaling` finds right. An autoscaler from elsewhere (HPA,
    KEDA) writes it through the scale subresource, and needs a number here to begin with."""
    parallelism: Parallelism = Parallelism()
    """The accelerators of one replica."""
    resources: Annotated[dict[str, Any], Shaped(_Resources)] = Field(default={})
    """Compute resources of the server's container, as Kubernetes writes them. Left out: the accelerators that
    `parallelism` asks for; of our own engine none."""
    context: Context = Context()
    """How long a request may be."""
    sampling: Sampling = Sampling()
    """How tokens are chosen for requests that do not say. Left out: as the model's own configuration says."""
    quantization: Quantization = "none"
    """How the weights are quantized. none: as the model's own configuration says."""
    cache: Cache = Cache()
    """The KV cache."""
    adapters: Annotated[list[Adapter], Distinct("name")] = Field(default=[], max_length=128)
    """LoRA adapters that are served beside the model. Adding or removing one restarts nothing."""
    autoscaling: Autoscaling | None = None
    """Bounds and pace of the replicas' number. Not beside `replicas`."""
    routing: Routing = Routing()
    """How requests are spread."""
    rollout: Rollout = Rollout()
    """How a changed spec reaches the replicas."""
    weights: Weights = Weights()
    """Where weights are kept on the cluster, so that they are fetched once however many replicas there are."""
    load_timeout: Annotated[timedelta, Span("10s", "24h")] = timedelta(hours=1)
    """What a replica gets to load its weights before it is restarted, 10s to 24h."""
    drain_timeout: Annotated[timedelta, Span("0s", "24h")] = timedelta(minutes=2)
    """What running answers get to finish before a replica ends, at most 24h."""
    template: Annotated[dict[str, Any], Shaped(_PodTemplate)] = Field(default={})
    """What to merge into the pods, last: maps deeply, lists of named things by their names, tolerations appended."""

    @property
    def first_replicas(self) -> int:
        """How many replicas to start with."""
        if self.replicas is not None:
            return self.replicas
        return self.autoscaling.min if self.autoscaling else 1


class ModelDeployment(_Part):
    bound_by = (rules.ALIASES_ARE_FURTHER, rules.ADAPTERS_ARE_OTHERS)

    api_version: Literal["headwater.dev/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Metadata
    spec: Spec
    """What is wanted."""
    status: dict[str, Any] = Field(default={})
    """What is; written by the operator."""

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def served_names(self) -> list[str]:
        """What clients may send as `model` to reach the model itself; the first is the one it reports."""
        return [self.metadata.name, *self.spec.model.aliases]


def problems(error: ValidationError) -> list[str]:
    """What is wrong with a resource, one line for each mistake: its field, what is allowed, and what was found."""
    details = error.errors(include_url=False)
    return [f"{field_path(_location(each)) or 'the document'}: {finding(each)}" for each in details]


def _location(detail: ErrorDetails) -> list[int | str]:
    field = detail.get("ctx", {}).get("field")
    return [*detail["loc"], *(field.split(".") if field else ())]


# Files


def load(path: Path) -> list[ModelDeployment]:
    """Read a YAML file of one or more documents. Raises ResourceError, which names every mistake and its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        documents = list(_documents(text))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ResourceError(f"{path}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ResourceError(f"{path}: not YAML: {error}") from None
    if not documents:
        raise ResourceError(f"{path}: holds no {KIND}")
    deployments = [_validate(path, node, data) for node, data in documents]
    names = [deployment.name for deployment in deployments]
    if twin := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise ResourceError(f"{path}: metadata.name: must differ from one another; found {found(twin)} twice")
    return deployments


def _documents(text: str) -> Iterator[tuple[yaml.Node, Any]]:
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            data = loader.construct_document(node)
            if node is not None and data is not None:
                yield node, data
    finally:
        loader.dispose()


def _validate(path: Path, node: yaml.Node, data: Any) -> ModelDeployment:
    try:
        return ModelDeployment.model_validate(data)
    except ValidationError as error:
        lines = [_line(node, _location(each)) for each in error.errors(include_url=False)]
        told = [f"{path}:{line}: {problem}" for line, problem in zip(lines, problems(error), strict=True)]
        raise ResourceError("\n".join(told)) from None


def _line(node: yaml.Node, location: Sequence[int | str]) -> int:
    """Line of a field, counted from 1; for one that is missing, of what should hold it."""
    line = node.start_mark.line + 1
    for part in location:
        match node:
            case yaml.MappingNode():
                children = {key.value: (key, value) for key, value in node.value}
                if part not in children:
                    break
                key, node = children[part]
                line = key.start_mark.line + 1
            case yaml.SequenceNode() if isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            case _:
                break
    return line
