"""What fits where: weights and KV cache against the memory of so many accelerators. docs/choosing.md writes it out.

All sizes are in GiB (2^30 bytes) unless their name says bytes. `arithmetic.explain` gives the same as text, from the
same figures, so what is printed is what was computed.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from headwater.pick.capabilities import Capability
from headwater.pick.layout import Layout
from headwater.pick.precision import PRECISIONS, bytes_of
from headwater.pick.reserve import GIB, Limits, cache_gib, limits, reserve_gib
from headwater.pick.shape import Shape
from headwater.pick.workload import Workload

ADAPTER_RANK: Final = 64
"""The largest rank of a LoRA adapter, as our launchers tell the servers."""

ADAPTER_SLOTS: Final = {"vllm": 4, "sglang": 8}
"""Adapters that a server keeps room for on its GPUs, however many there are; the others keep all of them."""

ALONE: Final = Layout()


@dataclass(frozen=True, slots=True)
class Plan:
    """How a backend would serve a workload, as far as memory decides."""

    layout: Layout
    """How the GPUs of a replica share the model."""
    replicas: int
    weights_gib: float
    """Of a replica, with its adapters, and what several of its GPUs keep."""
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
        return self.layout.gpus * self.replicas


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


def copied_bytes(workload: Workload, shape: Shape, able: Capability) -> float:
    """Of all but the experts: what each group keeps that computes the attention of its own requests."""
    each = bytes_of(workload.known_quantization, workload.model or "") * padding(shape, workload)
    whole = weight_bytes(shape, workload) + adapter_bytes(workload, shape, able.backend)
    return max(whole - shape.experts * each, 0.0)


def weights_gib(workload: Workload, shape: Shape, able: Capability, layout: Layout = ALONE) -> float:
    once = weight_bytes(shape, workload) + adapter_bytes(workload, shape, able.backend)
    return (once + (layout.data - 1) * copied_bytes(workload, shape, able)) / GIB


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


def plan_with(workload: Workload, shape: Shape, able: Capability, layout: Layout) -> Plan | None:
    """How so many GPUs would hold the workload's requests; None where not even one fits."""
    step = step_of(workload, able)
    weights = weights_gib(workload, shape, able, layout)
    reserve = reserve_gib(able.backend, workload.accelerator, shape, layout, step)
    room = room_gib(workload, shape, able, layout, weights, reserve)
    whole = request_bytes(workload, shape, layout.tensor, workload.tokens)
    token = kv_token_bytes(workload, shape, layout.tensor)
    once = shared_tokens(workload, able) * token
    each = room * GIB / layout.data  # of one group, which keeps whole requests
    if each < whole:
        return None
    fits = layout.data * int((each - once) / max(whole - once, 1.0))
    most = step.sequences * (1 if able.backend == "sglang" else layout.data)
    requests = min(fits, most) if workload.accelerator.vendor != "cpu" else fits
    return Plan(
        layout=layout,
        replicas=min(math.ceil(workload.concurrency / requests), workload.gpus // layout.gpus),
        weights_gib=weights,
        reserve_gib=reserve,
        kv_gib=room,
        kv_token_bytes=token,
        request_bytes=whole,
        kv_tokens=int(room * GIB / (whole / workload.tokens)),
        fits=fits,
        requests=requests,
    )


def room_gib(
    workload: Workload, shape: Shape, able: Capability, layout: Layout, weights: float, reserve: float
) -> float:
    """For KV in a replica, as far as its fullest stage goes; below 0 where the weights alone are too much."""
    assert workload.accelerator_gib is not None
    fullest = layout.fullest(shape)
    part = weights / layout.gpus * fullest
    own = cache_gib(able.backend, workload.accelerator_gib, workload.fraction, part, reserve)
    return layout.gpus * own / fullest


def running(workload: Workload, requests: int, replicas: int) -> int:
    """Requests that a replica computes at once."""
    return min(requests, math.ceil(workload.concurrency / replicas))
