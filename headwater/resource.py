"""ModelDeployment: one model and how it is served, as a user writes it down.

The same file is a Kubernetes resource for the operator and the input of `headwater up`. Fields are camelCase in YAML
and snake_case here. Unknown fields are refused, because a misspelt one would be a wish silently not granted.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from headwater.validation import field_path, finding, found

API_VERSION: Final = "headwater.dev/v1alpha1"
KIND: Final = "ModelDeployment"

MAX_NAME: Final = 63 - len("-0123456789-01234")
"""Kubernetes names and label values end at 63 characters; ours add a revision's hash and a replica's number."""


class ResourceError(Exception):
    """A file cannot be used. One line for each mistake: file, line, field, what is allowed and what was found."""


# Values


def _rule(message: str, field: str = "") -> PydanticCustomError:
    """A broken rule; `field` is the path, below where it is raised, of the field to blame."""
    return PydanticCustomError("rule", "{message}", {"message": message, "field": field})


_SOURCES: Final = {
    "hf://OWNER/NAME": r"hf://[\w.-]+/[\w.-]+(/[^\s/]+)*",
    "s3://BUCKET/PATH": r"s3://[^\s/]+/\S+",
    "oci://REGISTRY/IMAGE": r"oci://[^\s/]+/\S+",
    "pvc://CLAIM/PATH": r"pvc://[^\s/]+(/\S*)?",
    "file://PATH": r"file://\S.*",
    "package://NAME": r"package://[A-Za-z_][\w.]*",
    "random:CONFIG": r"random:\S+",
}


def _check_source(source: str) -> str:
    if any(re.fullmatch(pattern, source) for pattern in _SOURCES.values()):
        return source
    raise _rule(f"must be one of {', '.join(_SOURCES)}; found {found(source)}")


def _check_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise _rule(f"must be at most {MAX_NAME} characters, found {found(name)} with {len(name)}")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        raise _rule(
            f"must be lowercase letters, digits and '-', and begin and end with a letter or digit; found {found(name)}"
        )
    return name


_UNITS: Final = {"h": 3600, "m": 60, "s": 1}


def _read_duration(value: Any) -> timedelta:
    if isinstance(value, str) and re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", value) and value:
        return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([hms])", value)))
    raise _rule(f"must be a duration such as 30s, 5m or 1h30m; found {found(value)}")


Source = Annotated[str, AfterValidator(_check_source)]
"""Where weights come from: a URL whose scheme says how to get them."""
Name = Annotated[str, AfterValidator(_check_name)]
"""A DNS-1123 label, short enough for the names that are made of it."""
Duration = Annotated[timedelta, BeforeValidator(_read_duration)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$")]
"""An amount of bytes as Kubernetes writes it: 50Gi."""
ServedName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^\S+$")]

BackendType = Literal["headwater", "vllm", "sglang", "tgi", "tensorrt-llm", "transformers", "auto"]
Quantization = Literal["none", "fp8", "awq", "gptq"]
RoutingPolicy = Literal["prefix", "round_robin", "least_loaded", "session"]


# The resource


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def know_every_field(cls, data: Any) -> Any:
        if not isinstance(data, dict) or cls.model_config["extra"] == "allow":
            return data
        allowed = [field.alias or name for name, field in cls.model_fields.items()]
        for name in data:
            if name not in allowed:
                close = difflib.get_close_matches(str(name), allowed, n=1)
                hint = f"did you mean `{close[0]}`? " if close else ""
                raise _rule(f"unknown field; {hint}Allowed: {', '.join(allowed)}", str(name))
        return data


class Metadata(_Part):
    model_config = ConfigDict(extra="allow")  # what Kubernetes keeps here is its own matter

    name: Name
    namespace: str | None = None
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})


class SecretKey(_Part):
    """A key of a Secret in the deployment's own namespace. The operator refers to it and never reads it."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    key: Annotated[str, Field(min_length=1, max_length=253)] = "token"


class Model(_Part):
    source: Source
    revision: Annotated[str, Field(min_length=1)] = "main"
    secret_ref: SecretKey | None = None
    """The hub's token, for a model that is not public."""
    aliases: list[ServedName] = Field(default=[])
    """Further names that clients may send as `model`; the first is the resource's own."""

    @field_validator("aliases")
    @classmethod
    def differ(cls, aliases: list[str]) -> list[str]:
        _refuse_twins(aliases)
        return aliases


class Backend(_Part):
    type: BackendType = "auto"
    image: str | None = None
    version: str | None = None
    args: list[str] = Field(default=[])
    """Passed to the server behind our own, which they override."""
    env: dict[str, str] = Field(default={})


class Parallelism(_Part):
    tensor: int = Field(default=1, ge=1)
    """Accelerators that share each layer."""
    nodes: int = Field(default=1, ge=1)
    """Machines that these are spread over."""

    @field_validator("nodes")
    @classmethod
    def divide_tensor(cls, nodes: int, info: ValidationInfo) -> int:
        tensor = info.data.get("tensor", nodes)
        if tensor % nodes:
            raise _rule(f"must divide `tensor`, which is {tensor}; found {nodes}")
        return nodes


class Context(_Part):
    max_tokens: int | None = Field(default=None, ge=1)
    """Prompt and output of one request, together. None: what the model can do."""


class Cache(_Part):
    fraction: float = Field(default=0.9, gt=0, le=1)
    """Of the accelerator's memory, for weights and KV cache together."""
    host_gib: float = Field(default=0.0, ge=0, alias="hostGiB")
    """Host memory that evicted blocks move to."""
    dtype: Literal["auto", "bfloat16", "float16", "float32", "fp8"] = "auto"


class Adapter(_Part):
    name: ServedName
    source: Source


class Weights(_Part):
    """Where the weights are kept on the cluster, so that they are fetched once however many replicas there are."""

    cached: bool = True
    """False: each replica fetches them for itself."""
    size: Quantity | None = None
    """Of the volume. None: the operator's default."""
    storage_class_name: str | None = None
    """None: the operator's default, else the cluster's."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] | None = None
    """ReadWriteOnce ties all replicas to one node. None: the operator's default."""
    keep: bool = True
    """Whether the volume outlives the resource."""


class Autoscaling(_Part):
    min: int = Field(default=1, ge=0)
    """0: none while nobody asks; the gateway holds the request that wakes it."""
    max: int = Field(ge=1)
    in_flight_per_replica: int = Field(default=32, ge=1)
    tolerance: float = Field(default=0.1, ge=0, lt=1)
    """Nothing is scaled while the load is within this share of what the replicas are there for."""
    stable_window: Duration = timedelta(seconds=60)
    """The load is the mean over this time, ..."""
    panic_window: Duration = timedelta(seconds=6)
    """... or over this one, while that is twice what the replicas are there for. No scaling down then."""
    scale_up_delay: Duration = timedelta(0)
    """For how long more replicas must have been wanted."""
    scale_down_delay: Duration = timedelta(minutes=5)
    """For how long fewer replicas must have been wanted."""

    @field_validator("max")
    @classmethod
    def at_least_min(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("min", 0):
            raise _rule(f"must be at least `min`, which is {info.data['min']}; found {value}")
        return value


class Routing(_Part):
    policy: RoutingPolicy = "prefix"
    weight: int = Field(default=100, ge=0)
    """Share of the requests, against other ModelDeployments that serve the same name."""


class Rollout(_Part):
    strategy: Literal["Auto", "Surge", "Replace"] = "Auto"
    """Surge starts a new replica before it stops an old one; Auto does so where there is room."""
    paused: bool = False
    """True: what runs goes on as it is; a changed spec waits."""


class Spec(_Part):
    model: Model
    backend: Backend = Backend()
    replicas: int | None = Field(default=None, ge=0)
    """None: one, or what `autoscaling` finds right."""
    parallelism: Parallelism = Parallelism()
    resources: dict[str, Any] = Field(default={})
    context: Context = Context()
    quantization: Quantization = "none"
    cache: Cache = Cache()
    adapters: list[Adapter] = Field(default=[])
    autoscaling: Autoscaling | None = None
    routing: Routing = Routing()
    rollout: Rollout = Rollout()
    weights: Weights = Weights()
    load_timeout: Duration = timedelta(hours=1)
    """What a replica gets to load its weights before it is restarted."""
    drain_timeout: Duration = timedelta(minutes=2)
    """What running answers get to finish before a replica ends."""
    template: dict[str, Any] = Field(default={})

    @field_validator("adapters")
    @classmethod
    def differ(cls, adapters: list[Adapter]) -> list[Adapter]:
        _refuse_twins([adapter.name for adapter in adapters])
        return adapters

    @field_validator("autoscaling")
    @classmethod
    def not_beside_replicas(cls, autoscaling: Autoscaling | None, info: ValidationInfo) -> Autoscaling | None:
        if autoscaling and info.data.get("replicas") is not None:
            raise _rule("cannot stand beside `replicas`: give a fixed number or bounds, not both")
        return autoscaling

    @property
    def first_replicas(self) -> int:
        """How many replicas to start with."""
        if self.replicas is not None:
            return self.replicas
        return self.autoscaling.min if self.autoscaling else 1


class ModelDeployment(_Part):
    api_version: Literal["headwater.dev/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Metadata
    spec: Spec
    status: dict[str, Any] = Field(default={})
    """Written by the operator."""

    @field_validator("spec")
    @classmethod
    def names_differ(cls, spec: Spec, info: ValidationInfo) -> Spec:
        if "metadata" in info.data:
            own = info.data["metadata"].name
            if own in spec.model.aliases:
                raise _rule(f"{found(own)} is the resource's name already", "model.aliases")
            taken = {own, *spec.model.aliases}
            if twin := next((adapter.name for adapter in spec.adapters if adapter.name in taken), None):
                raise _rule(f"{found(twin)} is a name of the model itself", "adapters")
        return spec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def served_names(self) -> list[str]:
        """What clients may send as `model` to reach the model itself; the first is the one it reports."""
        return [self.metadata.name, *self.spec.model.aliases]


def _refuse_twins(names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise _rule(f"must differ from one another, found {found(name)} twice")


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
    try:
        _refuse_twins([deployment.name for deployment in deployments])
    except PydanticCustomError as error:
        raise ResourceError(f"{path}: metadata.name: {error.message()}") from None
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
        lines = [_describe(path, node, detail) for detail in error.errors(include_url=False)]
        raise ResourceError("\n".join(lines)) from None


def _describe(path: Path, node: yaml.Node, detail: ErrorDetails) -> str:
    location = list(detail["loc"])
    if field := detail.get("ctx", {}).get("field"):
        location += field.split(".")
    return f"{path}:{_line(node, location)}: {field_path(location) or 'the document'}: {finding(detail)}"


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
