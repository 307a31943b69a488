"""What fits where: weights and KV cache against the memory of so many accelerators. docs/choosing.md writes it out.

All sizes are in GiB (2^30 bytes) unless their name says bytes. `arithmetic.explain` gives the same as text, from the
same figures, so what is printed is what was computed.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from headwater.pick.capabilities import Capability
from headwater.pick.hardware import GPUS_PER_NODE
from headwater.pick.precision import PRECISIONS, bytes_of
from headwater.pick.reserve import GIB, Limits, cache_gib, limits, reserve_gib
from headwater.pick.shape import Shape
from headwater.pick.workload import Workload

ADAPTER_RANK: Final = 64
"""The largest rank of a LoRA adapter, as our launchers tell the servers."""

ADAPTER_SLOTS: Final = {"vllm": 4, "sglang": 8}
"""Adapters that a server keeps room for on its GPUs, however many there are; the others keep all of them."""

LARGEST_TENSOR: Final = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """How a backend would serve a workload, as far as memory decides."""

    tensor: int
    """GPUs of a replica."""
    nodes: int
    """Machines of a replica."""
    replicas: int
    experts: bool
    """Whether experts are spread over the GPUs whole, not each cut into so many parts."""
    weights_gib: float
    """Of a replica, with its adapters."""
    reserve_gib: float
    """What the server takes for itself on each GPU."""
    kv_gib: float
    """Room for the KV cache in a replica."""
    kv_token_bytes: float
    """Of one further token of a long request, over all GPUs of a replica."""
    request_bytes: float
    """Of a whole request, over all GPUs of a replica."""
    kv_tokens: int
    """Tokens that fit in that room, in requests of the typical length."""
    fits: int
    """Requests that fit in that room at their full length."""
    requests: int
    """Requests that run at once: those that fit, as far as the server runs so many."""

    @property
    def gpus(self) -> int:
        return self.tensor * self.replicas


def step_of(workload: Workload, able: Capability) -> Limits:
    """The most that the server takes at once: by default, or what it is told."""
    usual = limits(able.backend, workload.accelerator)
    return replace(usual, sequences=workload.sequences) if workload.sequences else usual


# Weights


def quantized_parameters(shape: Shape, workload: Workload) -> float:
    form = PRECISIONS[workload.known_quantization]
    if form.experts_only and shape.experts:
        return shape.experts
    return shape.parameters - shape.embedding


def padding(shape: Shape, workload: Workload) -> float:
    """How much larger the experts are when loaded than in the file."""
    multiple = PRECISIONS[workload.known_quantization].padded
    return math.ceil(shape.expert_width / multiple) * multiple / shape.expert_width if shape.expert_width else 1.0


def weight_bytes(shape: Shape, workload: Workload) -> float:
    """Bytes of the model's weights, loaded. What is not quantized, as the embedding, stays in 16 bits."""
    quantized = quantized_parameters(shape, workload)
    each = bytes_of(workload.known_quantization, workload.model or "")
    if shape.stored is not None and not workload.online:
        return shape.stored + quantized * each * (padding(shape, workload) - 1)
    return quantized * each * padding(shape, workload) + (shape.parameters - quantized) * 2


def adapter_bytes(workload: Workload, shape: Shape, backend: str) -> float:
    """Of the slots for adapters: rank x (inputs + outputs) of every matrix of every layer."""
    if not workload.adapters:
        return 0.0
    slots = ADAPTER_SLOTS.get(backend, workload.adapters)
    dense = shape.active / (shape.layers * shape.hidden)
    return slots * ADAPTER_RANK * shape.layers * (8 * shape.hidden + dense) * 2


def weights_gib(workload: Workload, shape: Shape, able: Capability) -> float:
    return (weight_bytes(shape, workload) + adapter_bytes(workload, shape, able.backend)) / GIB


# KV


def element_bytes(workload: Workload) -> int:
    return 1 if workload.kv_dtype == "fp8" else workload.accelerator.kv_bytes


def kv_token_bytes(workload: Workload, shape: Shape, tensor: int) -> float:
    return shape.token_elements(tensor) * element_bytes(workload)


def request_bytes(workload: Workload, shape: Shape, tensor: int, tokens: int) -> float:
    fixed = shape.fixed_elements(tensor, tokens) * element_bytes(workload)
    return tokens * kv_token_bytes(workload, shape, tensor) + fixed


def shared_tokens(workload: Workload, able: Capability) -> int:
    """Tokens that all requests of a replica keep once."""
    return workload.shared_tokens if able.prefix_cache else 0


# Plans


def shares_layers(workload: Workload, able: Capability) -> bool:
    return workload.accelerator.vendor in able.tensor


def degrees(workload: Workload, shape: Shape, able: Capability) -> list[int]:
    """Over how many GPUs the backend could spread a layer: powers of two, unless the workload wants another number."""
    largest = LARGEST_TENSOR if able.nodes else GPUS_PER_NODE
    slices = workload.accelerator.slice is not None  # of one GPU, with no link between them
    alone = workload.accelerator.vendor == "cpu" and not workload.tensor
    if not shares_layers(workload, able) or alone or slices:
        largest = 1
    wanted = [workload.tensor] if workload.tensor else [2**n for n in range(largest.bit_length())]
    return [
        tensor
        for tensor in wanted
        if tensor <= min(largest, workload.gpus)
        and shape.divides(tensor)
        and (not cuts_blocks(workload, shape, tensor) or (able.experts and shape.expert_count % tensor == 0))
    ]


def cuts_blocks(workload: Workload, shape: Shape, tensor: int) -> bool:
    """Whether a GPU's part of an expert would end within a block of rows that share a scale, which servers refuse."""
    block = PRECISIONS[workload.known_quantization].block
    if block == 1 or not shape.expert_width or not workload.in_blocks:
        return False
    return shape.expert_width % (tensor * block) != 0


def plan_with(workload: Workload, shape: Shape, able: Capability, tensor: int) -> Plan | None:
    """How so many GPUs would hold the workload's requests; None where not even one fits."""
    step = step_of(workload, able)
    weights = weights_gib(workload, shape, able)
    reserve = reserve_gib(able.backend, workload.accelerator, shape, tensor, step)
    room = room_gib(workload, able, tensor, weights, reserve)
    whole = request_bytes(workload, shape, tensor, workload.tokens)
    if room * GIB < whole:
        return None
    token = kv_token_bytes(workload, shape, tensor)
    once = shared_tokens(workload, able) * token
    fits = int((room * GIB - once) / max(whole - once, 1.0))
    requests = min(fits, step.sequences) if workload.accelerator.vendor != "cpu" else fits
    return Plan(
        tensor=tensor,
        nodes=workload.nodes or (tensor if workload.accelerator.vendor == "cpu" else math.ceil(tensor / GPUS_PER_NODE)),
        replicas=min(math.ceil(workload.concurrency / requests), workload.gpus // tensor),
        experts=cuts_blocks(workload, shape, tensor),
        weights_gib=weights,
        reserve_gib=reserve,
        kv_gib=room,
        kv_token_bytes=token,
        request_bytes=whole,
        kv_tokens=int(room * GIB / (whole / workload.tokens)),
        fits=fits,
        requests=requests,
    )


def room_gib(workload: Workload, able: Capability, tensor: int, weights: float, reserve: float) -> float:
    """For KV in a replica; below 0 where the weights alone are too much."""
    assert workload.accelerator_gib is not None
    own = cache_gib(able.backend, workload.accelerator_gib, workload.fraction, weights / tensor, reserve)
    return tensor * own


def running(workload: Workload, requests: int, replicas: int) -> int:
    """Requests that a replica computes at once."""
    return min(requests, math.ceil(workload.concurrency / replicas))
