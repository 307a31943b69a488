"""A workload: the model, the hardware, and the traffic, as far as they decide how it is best served.

Each field is a flag of `headwater pick`; its description is the flag's help.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from headwater.pick import models
from headwater.pick.hardware import ACCELERATORS, UNKNOWN, Accelerator, accelerator
from headwater.pick.models import Shape
from headwater.resource import Duration, Quantization, Source
from headwater.validation import finding, found

MAX_GPUS: Final = 10_000

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([mbt])", re.IGNORECASE)
_SCALES: Final = {"m": 1e6, "b": 1e9, "t": 1e12}


class WorkloadError(ValueError):
    """A workload contradicts itself or lacks something; the message names the flag."""


def _rule(message: str) -> PydanticCustomError:
    return PydanticCustomError("rule", "{message}", {"message": message})


def _read_size(value: Any) -> Any:
    """`8b`, `70.6B`, `135m` as a number; other values are left to pydantic."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return float(match[1]) * _SCALES[match[2].lower()]
    if isinstance(value, str):
        raise _rule(f"must be a number of parameters such as 8b, 70.6b or 135m; found {found(value)}")
    return value


def _check_model(model: str) -> str:
    if _SIZE.fullmatch(model):
        return model
    try:
        TypeAdapter(Source).validate_python(_source(model))
    except ValidationError:
        raise _rule(
            f"must be a size such as 8b, a source such as hf://OWNER/NAME, or a known model such as "
            f"{models.SHAPES[4].name}; found {found(model)}"
        ) from None
    return model


def _source(model: str) -> str:
    if re.match(r"[a-z0-9]+://|random:", model):
        return model
    if "/" in model:
        return f"hf://{model}"
    known = models.named(model)
    return f"hf://{known.hub}" if known else model


def _check_gpu(name: str) -> str:
    if name not in ACCELERATORS and name not in UNKNOWN:
        raise _rule(f"must be one of {', '.join(ACCELERATORS)}; found {found(name)}")
    return name


Parameters = Annotated[float, BeforeValidator(_read_size), Field(ge=1e6, le=1e14)]
Share = Annotated[float, Field(ge=0, le=1)]


class Workload(BaseModel):
    """Raises pydantic's ValidationError; `workload` reads one and raises WorkloadError instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, AfterValidator(_check_model)] | None = Field(
        default=None,
        description="The model: hf://OWNER/NAME, another source, a known model's name, or a size such as 8b",
    )
    params: Parameters | None = Field(
        default=None, description="Its parameters, such as 8b; without it: what the name says"
    )
    family: str | None = Field(default=None, description="Its family, such as llama; without it: what the name says")
    quantization: Quantization | None = Field(
        default=None, description="Of the weights; without it: what the model's name says, else none"
    )
    adapters: int = Field(default=0, ge=0, description="LoRA adapters served beside the model")
    gpu: Annotated[str, AfterValidator(_check_gpu)] = Field(default="h100", description="The accelerator, or cpu")
    gpus: int = Field(
        default=1, ge=1, le=MAX_GPUS, description="How many there are, for all replicas; of cpu: how many machines"
    )
    memory_gib: float | None = Field(
        default=None, gt=0, description="Memory of one in GiB; without it: the data sheet's, and 64 for cpu"
    )
    concurrency: int = Field(default=32, ge=1, description="Requests in flight at the same time, at peak")
    input_tokens: int = Field(default=1000, ge=1, description="Prompt tokens of a typical request")
    output_tokens: int = Field(default=250, ge=1, description="Output tokens of a typical request")
    shared_prefix: Share = Field(
        default=0.0, description="Share of the prompt that many requests have in common, 0 to 1"
    )
    agentic: bool = Field(default=False, description="Agents: many turns, each sends the conversation so far again")
    structured: bool = Field(default=False, description="Answers must follow a JSON schema or a grammar")
    sampling: bool = Field(default=False, description="Requests that do not say how to sample get defaults of yours")
    mixed: bool = Field(default=False, description="Only a part of the requests is like that; the rest is plain")
    shared_requests: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="With --mixed: that part, as a share of all requests"
    )
    build_time: Duration = Field(
        default=timedelta(0), description="How long a build before the first start may take: 40m"
    )
    broad_models: bool = Field(default=False, description="Any architecture must do, also one that is new or rare")
    hugging_face: bool = Field(default=False, description="Operations are built around Hugging Face's own servers")
    tensor: int | None = Field(
        default=None, ge=1, description="GPUs that share each layer; without it: as few as will do"
    )
    nodes: int | None = Field(
        default=None, ge=1, description="Machines that a replica is spread over; without it: one for each 8 GPUs"
    )
    host_cache_gib: float = Field(default=0.0, ge=0, description="Host memory in GiB that evicted KV blocks move to")

    @field_validator("tensor")
    @classmethod
    def within_gpus(cls, tensor: int | None, info: ValidationInfo) -> int | None:
        if tensor and tensor > info.data.get("gpus", tensor):
            raise _rule(f"must be at most --gpus, which is {info.data['gpus']}; found {tensor}")
        return tensor

    @field_validator("nodes")
    @classmethod
    def divide_tensor(cls, nodes: int | None, info: ValidationInfo) -> int | None:
        tensor = info.data.get("tensor")
        if nodes and nodes > 1 and (tensor is None or tensor % nodes):
            raise _rule(f"must divide --tensor, which is {tensor or 'not given'}; found {nodes}")
        return nodes

    @property
    def accelerator(self) -> Accelerator:
        return accelerator(self.gpu)

    @property
    def accelerator_gib(self) -> float | None:
        """Memory of one; None: not known."""
        return self.memory_gib if self.memory_gib is not None else self.accelerator.memory_gib

    @property
    def source(self) -> str | None:
        """Where the weights are, as in `spec.model.source`; None where only a size is known."""
        return None if self.model is None or _SIZE.fullmatch(self.model) else _source(self.model)

    @property
    def known_family(self) -> str | None:
        if self.family is not None:
            return self.family.lower()
        return models.family_in(self.source) if self.source else None

    @property
    def known_quantization(self) -> Quantization:
        """What was asked for, else what the model's name says."""
        if self.quantization is not None:
            return self.quantization
        name = (self.source or "").rpartition("/")[2].lower()
        known: tuple[Quantization, ...] = ("awq", "gptq", "fp8")
        return next((each for each in known if each in name), "none")

    @property
    def shared_tokens(self) -> int:
        """Of a prompt, those that need no computation where the cache has them."""
        return int(self.shared_prefix * self.input_tokens)

    @property
    def tokens(self) -> int:
        """Of one request at its end."""
        return self.input_tokens + self.output_tokens

    @property
    def shape(self) -> Shape | None:
        """Of the model, known or estimated; None where neither its name nor anything else tells its size."""
        known = models.named(self.source) if self.source else None
        if known and (self.params is None or abs(known.parameters / self.params - 1) <= models.SAME_SIZE):
            return known
        size = self.params or (_read_size(self.model) if self.model and not self.source else None)
        if size is None and self.source:
            size = models.size_in(self.source)
        if size is None:
            return None
        family = self.known_family
        return (models.like(family, size) if family else None) or models.estimate(size, family)


def workload(values: Mapping[str, Any]) -> Workload:
    """Read a workload, whose values may be text. Raises WorkloadError, which names the flag."""
    try:
        return Workload.model_validate(dict(values))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise WorkloadError(f"--{str(detail['loc'][0]).replace('_', '-')}: {finding(detail)}") from None
