"""A workload: the model, the hardware, and the traffic, as far as they decide how it is best served.

Each field is a flag of `headwater pick`; its description is the flag's help.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

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

from headwater.pick import models, names
from headwater.pick.hardware import ACCELERATORS, GIVEN, Accelerator, accelerator, close_to
from headwater.pick.measured import Measured
from headwater.pick.precision import Precision, precision_in
from headwater.pick.shape import Kept, Shape
from headwater.resource import Duration, Source
from headwater.validation import finding, found
from headwater.values import ImageName

MAX_GPUS: Final = 10_000

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([mbt])", re.IGNORECASE)
_SCALES: Final = {"m": 1e6, "b": 1e9, "t": 1e12}
_SIZES: Final = (1e6, 1e14)
"""Parameters of the smallest and of the largest model."""


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
        if not _SIZES[0] <= _read_size(model) <= _SIZES[1]:
            raise _rule(f"must be a size from 1m to 100t; found {found(model)}")
        return model
    try:
        TypeAdapter(Source).validate_python(_source(model))
    except ValidationError:
        close = models.close_to(model)
        hint = f"; did you mean {close}?" if close else ""
        raise _rule(
            f"must be a size such as 8b, a source such as hf://OWNER/NAME, or a known model such as "
            f"Llama-3.1-8B; found {found(model)}{hint}"
        ) from None
    return model


def _check_family(name: str) -> str:
    """One that is not known may be a rare one; one that is spelled nearly like a known one is a slip."""
    known = models.families()
    if name.lower() not in known and (close := difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)):
        raise _rule(f"is not known; found {found(name)}; did you mean {close[0]}?")
    return name


def _source(model: str) -> str:
    if re.match(r"[a-z0-9]+://|random:", model):
        return model
    if "/" in model:
        return f"hf://{model}"
    known = models.named(model)
    return f"hf://{known.hub}" if known else model


def _check_gpu(name: str) -> str:
    try:
        return accelerator(name).name
    except KeyError:
        pass
    if close := close_to(name):
        raise _rule(f"is not known; found {found(name)}; did you mean {' or '.join(close)}?")
    raise _rule(f"must be one of {', '.join(ACCELERATORS)}, or a MIG slice such as h100-2g.20gb; found {found(name)}")


Parameters = Annotated[float, BeforeValidator(_read_size), Field(ge=_SIZES[0], le=_SIZES[1])]
Share = Annotated[float, Field(ge=0, le=1)]


def _read_prices(value: Any) -> Any:
    """`h100=2.5,l40s=1.1` as a mapping."""
    if not isinstance(value, str):
        return value
    try:
        pairs = (each.rsplit("=", 1) for each in value.split(","))
        return {name.strip().lower(): float(price) for name, price in pairs}
    except ValueError:
        raise _rule(f"must be prices such as h100=2.5,l40s=1.1; found {found(value)}") from None


_LABEL: Final = re.compile(
    r"([a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?=([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?"
)
"""As Kubernetes has it."""


def _read_labels(value: Any) -> Any:
    """`a=b,c=d` as a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [each.partition("=") for each in value.split(",")]
    if not all(separator and _LABEL.fullmatch(f"{name.strip()}={label.strip()}") for name, separator, label in pairs):
        raise _rule(f"must be labels such as nvidia.com/gpu.product=NVIDIA-L4; found {found(value)}")
    return {name.strip(): label.strip() for name, _, label in pairs}


Labels = Annotated[dict[str, str], BeforeValidator(_read_labels)]
Prices = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_read_prices)]


class Workload(BaseModel):
    """Raises pydantic's ValidationError; `workload` reads one and raises WorkloadError instead."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    model: Annotated[str, AfterValidator(_check_model)] | None = Field(
        default=None,
        description="The model: hf://OWNER/NAME, another source, a known model's name, or a size such as 8b",
    )
    params: Parameters | None = Field(
        default=None, description="Its parameters, such as 8b; without it: what the name says"
    )
    family: Annotated[str, AfterValidator(_check_family)] | None = Field(
        default=None, description="Its family, such as llama; without it: what the name says"
    )
    active: Parameters | None = Field(
        default=None, description="Parameters that compute one token, of a mixture of experts, such as 3b"
    )
    layers: int | None = Field(default=None, ge=1, le=1000, description="Layers of a model that is not known")
    full_layers: int | None = Field(
        default=None, ge=1, le=1000, description="Of these, layers that keep all tokens, where others keep a window"
    )
    window: int | None = Field(default=None, ge=1, description="Tokens that the other layers keep; without it: a state")
    heads: int | None = Field(default=None, ge=1, le=1024, description="Attention heads of a model that is not known")
    kv_heads: int | None = Field(default=None, ge=1, le=1024, description="KV heads of it")
    head_dim: int | None = Field(default=None, ge=1, le=4096, description="Elements of one head's key")
    latent: int | None = Field(
        default=None, ge=1, description="Elements that a layer keeps of a token in place of keys and values (MLA)"
    )
    quantization: Precision | None = Field(
        default=None, description="Of the weights; without it: what the model's name or its config says, else none"
    )
    kv_dtype: Literal["auto", "fp8"] = Field(default="auto", description="Number format of the KV cache")
    fraction: float | None = Field(
        default=None, gt=0, le=1, description="Share of the memory that the server may use; without it: its default"
    )
    adapters: int = Field(default=0, ge=0, description="LoRA adapters served beside the model")
    gpu: Annotated[str, AfterValidator(_check_gpu)] = Field(default="h100", description="The accelerator, or cpu")
    gpus: int = Field(
        default=1, ge=1, le=MAX_GPUS, description="How many there are, for all replicas; of cpu: how many machines"
    )
    memory_gib: float | None = Field(
        default=None, gt=0, description="Memory of one in GiB, as servers see it; without it: as known, and 64 for cpu"
    )
    bandwidth: float | None = Field(default=None, gt=0, description="Of its memory, in GB/s; without it: as known")
    flops: float | None = Field(
        default=None, gt=0, description="Of it in bfloat16, in 10^12 a second; without it: as known"
    )
    concurrency: int = Field(default=32, ge=1, description="Requests in flight at the same time, at peak")
    input_tokens: int = Field(default=1000, ge=1, description="Prompt tokens of a typical request")
    output_tokens: int = Field(default=250, ge=1, description="Output tokens of a typical request")
    rate: float | None = Field(default=None, gt=0, description="Requests a second that must be kept up with")
    ttft: float | None = Field(default=None, gt=0, description="Seconds that a first token may take, computed at once")
    tpot: float | None = Field(default=None, gt=0, description="Seconds that each further token may take")
    offline: bool = Field(default=False, description="Nobody waits: as many tokens a second as all GPUs can make")
    price: Prices = Field(default={}, description="Of a GPU in an hour, such as h100=2.5,l40s=1.1")
    budget: float | None = Field(default=None, gt=0, description="What all GPUs may cost in an hour, with --price")
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
    pipeline: int = Field(default=1, ge=1, le=128, description="Stages that the layers are cut into")
    data: int = Field(
        default=1, ge=1, description="Groups of --tensor GPUs that each compute the attention of their own requests"
    )
    expert: bool = Field(default=False, description="Each GPU of a stage has some experts whole")
    nodes: int | None = Field(
        default=None, ge=1, description="Machines that a replica is spread over; without it: one for each 8 GPUs"
    )
    sequences: int | None = Field(
        default=None, ge=1, description="Most requests that a server runs at once; fewer need less memory of its own"
    )
    host_cache_gib: float = Field(default=0.0, ge=0, description="Host memory in GiB that evicted KV blocks move to")
    image: ImageName | None = Field(
        default=None, description="The server's container image, where it is not the backend's own"
    )
    registry: str | None = Field(
        default=None,
        description="Host of the registry of images that Docker Hub has not: TGI, TensorRT-LLM, transformers",
    )
    node_selector: Labels = Field(
        default={}, description="Labels of the nodes to run on, such as nvidia.com/gpu.product=NVIDIA-L4"
    )
    read: Shape | None = Field(default=None, exclude=True, repr=False)
    """The model, where its config.json was read. No flag."""
    measured: Measured | None = Field(default=None, exclude=True, repr=False)
    """How fast a replica was, where that was measured. No flag of its own: `--measure` says where."""

    @field_validator("budget")
    @classmethod
    def with_a_price(cls, budget: float | None, info: ValidationInfo) -> float | None:
        if budget is not None and info.data.get("gpu") not in info.data.get("price", {}):
            raise _rule(f"needs --price {info.data.get('gpu')}=USD; found {budget:g} alone")
        return budget

    @field_validator("tensor")
    @classmethod
    def within_gpus(cls, tensor: int | None, info: ValidationInfo) -> int | None:
        if tensor and tensor > info.data.get("gpus", tensor):
            raise _rule(f"must be at most --gpus, which is {info.data['gpus']}; found {tensor}")
        return tensor

    @field_validator("data")
    @classmethod
    def within_gpus_together(cls, data: int, info: ValidationInfo) -> int:
        together = (info.data.get("tensor") or 1) * info.data.get("pipeline", 1) * data
        if together > info.data.get("gpus", together):
            raise _rule(
                f"times --tensor and --pipeline must be at most --gpus, which is {info.data['gpus']}; found {data}"
            )
        return data

    @field_validator("nodes")
    @classmethod
    def divide_gpus(cls, nodes: int | None, info: ValidationInfo) -> int | None:
        tensor = info.data.get("tensor")
        together = (tensor or 1) * info.data.get("pipeline", 1) * info.data.get("data", 1)
        if nodes and nodes > 1 and (together == 1 or together % nodes):
            said = f"{together}" if together > 1 else "not given"
            raise _rule(f"must divide --tensor x --pipeline x --data, which is {said}; found {nodes}")
        return nodes

    @property
    def spread(self) -> int:
        """GPUs of a replica that are asked for; 1: none in particular, or one."""
        return (self.tensor or 1) * self.pipeline * self.data

    @property
    def accelerator(self) -> Accelerator:
        known = accelerator(self.gpu)
        own = {"bandwidth_gbs": self.bandwidth, "tflops": self.flops, "tflops8": self.flops and 2 * self.flops}
        own["memory_gib"] = self.memory_gib
        said = {"memory": self.memory_gib, "bandwidth": self.bandwidth, "arithmetic": self.flops}
        sources = {**known.sources, **{figure: GIVEN for figure, value in said.items() if value is not None}}
        own = {name: value for name, value in own.items() if value is not None}
        return replace(known, sources=sources, **own)  # type: ignore[arg-type]

    @property
    def gpu_price(self) -> float | None:
        """Of one in an hour; None: not said."""
        return self.price.get(self.gpu)

    @property
    def accelerator_gib(self) -> float | None:
        """Memory of one; None: not known."""
        return self.accelerator.memory_gib

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
    def own_precision(self) -> Precision:
        """How the checkpoint holds its weights: as its name says, else its config."""
        if self.read is not None:
            return self.read.published  # type: ignore[return-value]
        if self.source is None:
            return "none"
        if (said := precision_in(self.source)) is not None:
            return said
        known = models.named(self.source)
        return known.published if known else "none"  # type: ignore[return-value]

    @property
    def known_quantization(self) -> Precision:
        """What was asked for, else what the checkpoint has."""
        return self.own_precision if self.quantization is None else self.quantization

    @property
    def online(self) -> bool:
        """Whether the server has to quantize what is in 16 bits.

        Of formats that no server makes, the flag says what the checkpoint is.
        """
        return self.source is not None and self.quantization == "fp8" and self.own_precision == "none"

    @property
    def in_blocks(self) -> bool:
        """Whether FP8 weights have a scale for each block. Those of llm-compressor and ModelOpt have one for a row."""
        name = (self.source or "").lower()
        return not self.online and not re.search(
            r"dynamic|static|quantized|/(?:nvidia|redhatai|neuralmagic|amd)/", name
        )

    @property
    def shared_tokens(self) -> int:
        """Of a prompt, those that need no computation where the cache has them."""
        return int(self.shared_prefix * self.input_tokens)

    @property
    def tokens(self) -> int:
        """Of one request at its end."""
        return self.input_tokens + self.output_tokens

    def as_measured(self, measured: Measured) -> "Workload":
        """The same with the traffic that was measured."""
        traffic = {"input_tokens": round(measured.prompt_tokens), "output_tokens": round(measured.output_tokens)}
        return self.model_copy(update=traffic | {"shared_prefix": measured.cached_share})

    @property
    def shape(self) -> Shape | None:
        """Of the model, known or estimated; None where neither its name nor anything else tells its size."""
        shape = self.read or self._named() or self._estimated()
        return shape and self._with_flags(shape)

    def _named(self) -> Shape | None:
        known = models.named(self.source) if self.source else None
        if known and (self.params is None or abs(known.parameters / self.params - 1) <= models.SAME_SIZE):
            return known
        return None

    def _estimated(self) -> Shape | None:
        size = self.params or (_read_size(self.model) if self.model and not self.source else None)
        if size is None and self.source:
            size = names.size_in(self.source)
        if size is None:
            return None
        active = self.active or (names.active_in(self.source) if self.source else None)
        if active is None and self.source and names.has_experts(self.source):
            return None  # a dense model would be another kind
        like = models.like(self.family.lower(), size) if self.family and not active else None
        return like or models.estimate(size, self.known_family, active)

    def _with_flags(self, shape: Shape) -> Shape:
        """What flags say of a shape counts more than what is known or guessed."""
        said = (self.layers, self.full_layers, self.kv_heads, self.head_dim, self.latent)
        if self.heads:
            shape = replace(shape, heads=self.heads)
        if not any(said):
            return shape
        layers = self.layers or shape.layers
        full = self.full_layers or layers
        heads = 1 if self.latent else self.kv_heads or shape.kv_heads
        width = self.latent or 2 * (self.head_dim or 128)
        kept = [Kept(full, heads, width)]
        if self.window and full < layers:
            kept.append(Kept(layers - full, heads, width, self.window))
        exact = bool(self.layers and (self.latent or (self.kv_heads and self.head_dim)))
        return replace(shape, layers=layers, kept=tuple(kept), estimated=shape.estimated and not exact)


def workload(values: Mapping[str, Any], read: Shape | None = None, measured: Measured | None = None) -> Workload:
    """Read a workload, whose values may be text; `read`: its model. Raises WorkloadError, which names the flag."""
    try:
        return Workload.model_validate({**values, "read": read, "measured": measured})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise WorkloadError(f"--{str(detail['loc'][0]).replace('_', '-')}: {finding(detail)}") from None
