"""What fits where: weights and KV cache against the memory of so many accelerators. docs/choosing.md writes it out.

All sizes are in GiB (2^30 bytes) unless their name says bytes. `explain` gives the same arithmetic as text, from the
same figures, so what is printed is what was computed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headwater.pick.capabilities import Capability
from headwater.pick.hardware import GPUS_PER_NODE
from headwater.pick.models import Shape, size_text
from headwater.pick.workload import Workload

GIB: Final = 2**30

FRACTION: Final = 0.9
"""Of each accelerator's memory, what a server may use: the default of `spec.cache.fraction`."""

RESERVE_GIB: Final = 2.0
"""Of that, on each accelerator, what activations, graphs and communication take."""

WEIGHT_BYTES: Final = {"none": 2.0, "fp8": 1.0, "awq": 0.52, "gptq": 0.52}
"""Of a quantized parameter. 4 bits come with a 16-bit scale and a 4-bit zero for each group of 128."""

ADAPTER_SHARE: Final = 0.01
"""Of the model's parameters, those of a LoRA adapter of rank 32 or so on all layers."""

LARGEST_TENSOR: Final = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """How a backend would serve a workload, as far as memory decides."""

    tensor: int
    """GPUs of a replica."""
    nodes: int
    """Machines of a replica."""
    replicas: int
    weights_gib: float
    """Of a replica, with its adapters."""
    kv_gib: float
    """Room for the KV cache in a replica."""
    kv_token_bytes: float
    """Of one token, over all GPUs of a replica."""
    kv_tokens: int
    """Tokens that fit in that room."""
    requests: int
    """Requests that fit in that room at their full length."""
    step_ms: float
    """The time that a decode step takes at least: reading weights and KV once."""

    @property
    def gpus(self) -> int:
        return self.tensor * self.replicas


def weight_bytes(shape: Shape, quantization: str) -> float:
    """Bytes of the model's weights. The embedding and the output head stay in 16 bits."""
    each = min(WEIGHT_BYTES[quantization], shape.native_bytes)
    return (shape.parameters - shape.embedding) * each + shape.embedding * 2


def adapter_bytes(workload: Workload, shape: Shape) -> float:
    return workload.adapters * shape.parameters * ADAPTER_SHARE * 2


def weights_gib(workload: Workload, shape: Shape) -> float:
    return (weight_bytes(shape, workload.known_quantization) + adapter_bytes(workload, shape)) / GIB


def kv_token_bytes(workload: Workload, shape: Shape, tensor: int) -> float:
    return shape.kv_elements * workload.accelerator.kv_bytes * shape.kv_copies(tensor)


def usable_gib(workload: Workload, tensor: int) -> float:
    """What weights and KV cache may take of so many accelerators."""
    assert workload.accelerator_gib is not None
    return tensor * (workload.accelerator_gib * FRACTION - RESERVE_GIB)


def shares_layers(workload: Workload, able: Capability) -> bool:
    return workload.accelerator.vendor in able.tensor


def degrees(workload: Workload, shape: Shape, able: Capability) -> list[int]:
    """Over how many GPUs the backend could spread a layer: powers of two, unless the workload wants another number."""
    largest = LARGEST_TENSOR if able.nodes else GPUS_PER_NODE
    if not shares_layers(workload, able) or (workload.accelerator.vendor == "cpu" and not workload.tensor):
        largest = 1
    wanted = [workload.tensor] if workload.tensor else [2**n for n in range(largest.bit_length())]
    return [tensor for tensor in wanted if tensor <= min(largest, workload.gpus) and shape.divides(tensor)]


def find_plan(workload: Workload, shape: Shape, able: Capability) -> Plan | None:
    """The plan that holds all requests with the fewest GPUs; where none holds all, the one that holds most.

    None where not even one request fits.
    """
    found = [_plan(workload, shape, able, tensor) for tensor in degrees(workload, shape, able)]
    plans = [plan for plan in found if plan]
    enough = [plan for plan in plans if plan.requests * plan.replicas >= workload.concurrency]
    if enough:
        return min(enough, key=lambda plan: (plan.gpus, plan.tensor))
    return max(plans, key=lambda plan: (plan.requests * plan.replicas, -plan.tensor), default=None)


def _plan(workload: Workload, shape: Shape, able: Capability, tensor: int) -> Plan | None:
    weights = weights_gib(workload, shape)
    room = usable_gib(workload, tensor) - weights
    token = kv_token_bytes(workload, shape, tensor)
    tokens = int(room * GIB / token) if room > 0 else 0
    if tokens < workload.tokens:
        return None
    shared = shared_tokens(workload, able)
    requests = (tokens - shared) // (workload.tokens - shared)
    replicas = min(math.ceil(workload.concurrency / requests), workload.gpus // tensor)
    return Plan(
        tensor=tensor,
        nodes=workload.nodes or (tensor if workload.accelerator.vendor == "cpu" else math.ceil(tensor / GPUS_PER_NODE)),
        replicas=replicas,
        weights_gib=weights,
        kv_gib=room,
        kv_token_bytes=token,
        kv_tokens=tokens,
        requests=requests,
        step_ms=_step_ms(workload, shape, tensor, token * running(workload, requests, replicas)),
    )


def shared_tokens(workload: Workload, able: Capability) -> int:
    """Tokens that all requests of a replica keep once."""
    return workload.shared_tokens if able.prefix_cache else 0


def running(workload: Workload, requests: int, replicas: int) -> int:
    """Requests that a replica computes at once."""
    return min(requests, math.ceil(workload.concurrency / replicas))


def _step_ms(workload: Workload, shape: Shape, tensor: int, kv_bytes: float) -> float:
    """`kv_bytes`: of one token of every running request. Half of each answer is there, on average."""
    read = weight_bytes(shape, workload.known_quantization) * shape.active / shape.parameters
    read += kv_bytes * (workload.input_tokens + workload.output_tokens / 2)
    return read / (tensor * workload.accelerator.bandwidth_gbs * 1e9) * 1e3


# As text


def weights_text(workload: Workload, shape: Shape) -> str:
    """`70.6B x 2 bytes = 131.4 GiB`."""
    each = min(WEIGHT_BYTES[workload.known_quantization], shape.native_bytes)
    text = f"{size_text(shape.parameters)} x 2 bytes"
    if each < 2:
        rest = size_text(shape.parameters - shape.embedding)
        text = f"{rest} x {each:g} byte{'s' * (each != 1)} + {size_text(shape.embedding)} of embedding x 2 bytes"
    if workload.adapters:
        text += f" + {workload.adapters} adapters x {adapter_bytes(workload, shape) / workload.adapters / GIB:.2f} GiB"
    return f"{text} = {weights_gib(workload, shape):,.1f} GiB"


def kv_text(workload: Workload, shape: Shape, tensor: int) -> str:
    """`2 x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB`."""
    heads = f"{shape.latent}" if shape.latent else f"2 x {shape.kv_heads} heads x {shape.head_dim}"
    text = f"{shape.layers} layers x {heads} x {workload.accelerator.kv_bytes} bytes"
    if (copies := shape.kv_copies(tensor)) > 1:
        text += f" x {copies:g} copies"
    return f"{text} = {kv_token_bytes(workload, shape, tensor) / 1024:,.1f} KiB"


def explain(workload: Workload, shape: Shape, able: Capability, plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan's arithmetic, as lines of what and how."""
    memory = workload.accelerator_gib
    yield "weights", weights_text(workload, shape) + (" (estimated shape)" if shape.estimated else "")
    yield "KV, a token", kv_text(workload, shape, plan.tensor)
    yield (
        "room for KV",
        f"{plan.tensor} x ({memory:g} GiB x {FRACTION:g} - {RESERVE_GIB:g} GiB) - {plan.weights_gib:,.1f} GiB"
        f" = {plan.kv_gib:,.1f} GiB = {plan.kv_tokens:,} tokens",
    )
    shared = shared_tokens(workload, able)
    own = workload.tokens - shared
    length = f"{workload.input_tokens:,} + {workload.output_tokens:,} tokens"
    if shared:
        text = f"{length}, of which {shared:,} are shared: ({plan.kv_tokens:,} - {shared:,}) / {own:,}"
    else:
        text = f"{length}: {plan.kv_tokens:,} / {own:,}"
    yield "requests", f"{text} = {plan.requests:,} at once in a replica"
    yield "replicas", _replicas_text(workload, plan)
    yield (
        "decode step",
        f"at least {plan.step_ms:.1f} ms: weights and KV, read once at {plan.tensor} x "
        f"{workload.accelerator.bandwidth_gbs:,.0f} GB/s",
    )


def _replicas_text(workload: Workload, plan: Plan) -> str:
    what = "machine" if workload.accelerator.vendor == "cpu" else "GPU"
    there = f"{workload.gpus:,} {what}{'s' if workload.gpus > 1 else ''}"
    wanted = math.ceil(workload.concurrency / plan.requests)
    text = f"{workload.concurrency:,} / {plan.requests:,} -> {wanted:,}"
    if wanted > plan.replicas:
        held = plan.replicas * plan.requests
        text += f", but {there} make {plan.replicas}: {held:,} run at once, the others wait"
    return f"{text}; {plan.replicas} x {plan.tensor} = {plan.gpus} of {there}"


def shortfall(workload: Workload, shape: Shape, able: Capability) -> str:
    """Why not even one request fits: the arithmetic for as many GPUs as the backend can use together."""
    tensor = max(degrees(workload, shape, able), default=None)
    if tensor is None:
        return f"{workload.tensor} GPUs cannot share the {shape.kv_heads} KV heads of {shape.name} evenly"
    return (
        f"{weights_text(workload, shape)} of weights, + {_request_gib(workload, shape, tensor):.1f} GiB of KV for one "
        f"request of {workload.tokens:,} tokens, + {tensor} x {RESERVE_GIB:g} GiB of reserve = "
        f"{_comparison(workload, shape, tensor)}"
    )


def lack(workload: Workload, shape: Shape, able: Capability) -> str:
    """The same in short, to follow a backend's name."""
    tensor = max(degrees(workload, shape, able), default=None)
    if tensor is None:
        return f"cannot have {workload.tensor} GPUs share the {shape.kv_heads} KV heads of {shape.name}"
    return f"needs {_comparison(workload, shape, tensor)}"


def _comparison(workload: Workload, shape: Shape, tensor: int) -> str:
    assert workload.accelerator_gib is not None
    needed = weights_gib(workload, shape) + _request_gib(workload, shape, tensor) + tensor * RESERVE_GIB
    there = tensor * workload.accelerator_gib * FRACTION
    return f"{needed:,.1f} GiB > {tensor} x {workload.accelerator_gib:g} GiB x {FRACTION:g} = {there:,.1f} GiB"


def _request_gib(workload: Workload, shape: Shape, tensor: int) -> float:
    return workload.tokens * kv_token_bytes(workload, shape, tensor) / GIB
