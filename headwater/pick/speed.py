"""How fast a plan can be: a roofline of each step, with efficiencies fitted to published measurements.

A step reads the weights that its tokens touch and the cache of all running requests, or computes, whichever takes
longer; then GPUs that share layers tell each other. A replica that always has requests spends its time on their
prompts and on steps that give each running request one token. `docs/speed.md` compares what comes out with what was
measured, and says where the efficiencies come from. Real servers are slower and faster than that by a factor, which is
why each figure is a range.
"""

import math
from dataclasses import dataclass
from typing import Final

from headwater.pick.hardware import GPUS_PER_NODE, Accelerator
from headwater.pick.layout import Layout
from headwater.pick.memory import Plan, kv_token_bytes, quantized_parameters, running
from headwater.pick.precision import bytes_of
from headwater.pick.shape import Shape
from headwater.pick.workload import Workload

READING: Final = 0.8
"""Of the bandwidth of the memory, in decode steps."""

COMPUTING: Final = 0.47
"""Of the arithmetic, where many tokens are computed at once."""

EXPERTS: Final = 0.57
"""Of either, what is left where tokens are sorted to experts, of which each gets few."""

TELLING: Final = 0.36
"""Of the link between GPUs."""

LAYER_SECONDS: Final = 5e-5
"""What a layer of a step takes at least, beside all that: kernels that wait for one another."""

REQUEST_SECONDS: Final = 1.5e-5
"""What choosing a token, and keeping the books of its request, takes in each step."""

HOP_SECONDS: Final = 1.5e-5
"""Twice in a layer, where GPUs share it."""

SPREAD: Final = 1.5
"""Measured figures are at most so many times more or less, mostly."""


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float

    @classmethod
    def around(cls, value: float, spread: float = SPREAD) -> "Range":
        return cls(value / spread, value * spread)

    @classmethod
    def carried(cls, measured: float, here: float, there: float) -> "Range":
        """A figure that was measured under another load, by the roofline of this one and that one.

        Under the same load it is what was measured; the further from it, the less sure, up to what the roofline is.
        """
        factor = here / there
        return cls.around(measured * factor, min(SPREAD, max(factor, 1 / factor)))

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True, slots=True)
class Speed:
    tokens: Range
    """Output tokens a second, of all replicas with as many requests as they run."""
    first: Range
    """Seconds to the first token of a request that finds a place at once."""
    each: Range
    """Seconds between two tokens of a request."""
    step_seconds: float
    """Of a decode step at least: what has to be read, at the full bandwidth of the memory."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The GPUs of a replica and how they share a model."""

    accelerator: Accelerator
    layout: Layout

    @property
    def gpus(self) -> int:
        """That compute a layer together."""
        return self.layout.stage

    @property
    def bandwidth(self) -> float:
        """Of their memories, in bytes a second."""
        return self.gpus * self.accelerator.bandwidth_gbs * 1e9


def prompt_seconds(shape: Shape, work: Workload, machine: Machine, tokens: int) -> float:
    """To compute a prompt of so many tokens that no cache has."""
    products = _operations(shape) * tokens / _rate(work, machine)
    attention = _attention(shape, tokens) / _rate_of(machine, 16)  # whatever the weights are in
    return products + attention + _telling(shape, machine, tokens)


def step_seconds(shape: Shape, work: Workload, machine: Machine, batch: float, context: float) -> float:
    """Of one token for each of `batch` requests that have `context` tokens each."""
    reading = read_bytes(shape, work, machine, batch, context) / (machine.bandwidth * READING)
    computing = _operations(shape) * batch / _rate(work, machine)
    return (
        max(reading, computing)
        + shape.layers * LAYER_SECONDS
        + batch * REQUEST_SECONDS
        + _telling(shape, machine, batch)
    )


def read_bytes(shape: Shape, work: Workload, machine: Machine, batch: float, context: float) -> float:
    """What one step reads, on all GPUs together: weights that its tokens touch, and the cache of its requests."""
    quantized = quantized_parameters(shape, work)
    each = bytes_of(work.known_quantization, work.model or "")
    experts_bytes = each if quantized else 2.0
    touched = 1.0
    if shape.experts and shape.expert_count:
        touched = 1 - (1 - shape.experts_used / shape.expert_count) ** batch
    elif shape.experts:
        touched = min(1.0, batch * (shape.active / shape.parameters))
    dense = shape.parameters - shape.experts - shape.embedding / 2
    dense_bytes = dense * (2.0 if quantized == shape.experts and shape.experts else each)
    tensor = machine.layout.tensor
    cache = batch * (context * kv_token_bytes(work, shape, tensor) + 2 * shape.fixed_elements(tensor, int(context)))
    return dense_bytes * machine.layout.data + shape.experts * experts_bytes * touched / EXPERTS + cache


def throughput(shape: Shape, work: Workload, machine: Machine, batch: float) -> float:
    """Output tokens a second of a replica of one stage that always has `batch` requests."""
    prompt = work.input_tokens - work.shared_tokens
    prompts = batch * prompt_seconds(shape, work, machine, max(prompt, 1))
    context = work.input_tokens + work.output_tokens / 2
    steps = work.output_tokens * step_seconds(shape, work, machine, batch, context)
    return batch * work.output_tokens / (prompts + steps)


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one replica."""

    tokens: float
    """A second, of all its requests."""
    first: float
    """Seconds to the first token of a request that finds a place at once."""
    each: float
    """Seconds between two tokens of a request, whose steps are held up by the prompts of the others."""


def pace(shape: Shape, work: Workload, machine: Machine, batch: float) -> Pace:
    """By the roofline, of a replica that always has `batch` requests, of which each stage computes its part."""
    stages = machine.layout.pipeline
    tokens = stages * throughput(shape, work, machine, batch / stages)
    first = prompt_seconds(shape, work, machine, max(work.input_tokens - work.shared_tokens, 1))
    return Pace(tokens, first + batch / tokens, batch / tokens)


def speed_of(shape: Shape, work: Workload, plan: Plan) -> Speed:
    machine = Machine(work.accelerator, plan.layout)
    batch = plan.requests if work.offline else running(work, plan.requests, plan.replicas)
    context = work.input_tokens + work.output_tokens / 2
    floor = read_bytes(shape, work, machine, batch / plan.layout.pipeline, context) / machine.bandwidth
    here = pace(shape, work, machine, batch)
    if (measured := work.measured) is None:
        tokens = Range.around(plan.replicas * here.tokens)
        return Speed(tokens, Range.around(here.first), Range.around(here.each), floor)
    there = pace(shape, work.as_measured(measured), machine, measured.concurrency)
    return Speed(
        Range.carried(plan.replicas * measured.output_tokens_per_s, here.tokens, there.tokens),
        Range.carried(measured.ttft_p50 / 1000, here.first, there.first),
        Range.carried(measured.tpot_p50 / 1000, here.each, there.each),
        floor,
    )


def _operations(shape: Shape) -> float:
    """For one token; those of experts count for more, as they run slower."""
    routed = shape.experts * (shape.experts_used / shape.expert_count) if shape.expert_count else 0.0
    return 2 * (shape.active - routed + routed / EXPERTS)


_EXPANDED: Final = 320
"""Elements of a head's query and value where a latent is expanded to them, as in DeepSeek's models."""


def _attention(shape: Shape, tokens: int) -> float:
    """Of a prompt: each token with all before it, or with those of the window, for scores and for values."""
    operations = 0.0
    for kept in shape.kept:
        near = min(tokens, kept.window or tokens)
        width = kept.width if kept.heads > 1 else min(kept.width, _EXPANDED)
        operations += 2 * kept.layers * shape.heads * width * (tokens * near - near**2 / 2)
    return operations


def _rate(work: Workload, machine: Machine) -> float:
    bits = math.ceil(8 * bytes_of(work.known_quantization, work.model or "") - 1)
    # Weights in 4 bits with 16-bit activations are computed in 16; only the float formats have arithmetic of their own.
    if work.known_quantization in ("awq", "gptq", "int4", "gguf", "bnb"):
        bits = 16
    if work.known_quantization == "mxfp4" and machine.accelerator.tflops4 is None:
        bits = 16
    if work.known_quantization in ("fp8", "mxfp8") and machine.accelerator.generation in ("ampere", "turing"):
        bits = 16  # which have fast integers of 8 bits, and no such floats
    return _rate_of(machine, bits)


def _rate_of(machine: Machine, bits: int) -> float:
    return machine.gpus * machine.accelerator.operations(bits) * 1e12 * COMPUTING


def _telling(shape: Shape, machine: Machine, tokens: float) -> float:
    """What GPUs tell one another: all tokens, twice in a layer."""
    if machine.gpus == 1:
        return 0.0
    part = 2 * (machine.gpus - 1) / machine.gpus
    link = machine.accelerator.link_gbs if machine.gpus <= GPUS_PER_NODE else 50.0
    each = HOP_SECONDS + part * tokens * shape.hidden * 2 / (link * 1e9 * TELLING)
    return 2 * shape.layers * each
