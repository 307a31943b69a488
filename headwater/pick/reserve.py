"""What a server keeps of an accelerator's memory for itself, beside weights and KV cache.

The measurements (eight vLLM logs from an H100, docs/choosing.md) show what it is: before it makes its cache, a server
tries the largest step that it would ever take. That peaks either in the layers, by batched tokens and the model's
width, or in choosing tokens: `SAMPLING` copies of the logits in float32, for as many sequences as may run at once.
4.76 GiB for Llama-3.1-8B, 5.6 for Qwen3, 7.38 for gpt-oss are 9.6 to 9.9 times 1,024 x vocabulary x 4 bytes; 0.9 GiB
for EXAONE-4 on an L40S is as much for 256 sequences.
"""

from dataclasses import dataclass
from typing import Final

from headwater.pick.capabilities import BackendName
from headwater.pick.hardware import Accelerator
from headwater.pick.layout import Layout
from headwater.pick.shape import Shape

GIB: Final = 2**30

SAMPLING: Final = 9.7
"""Copies of the logits while tokens are chosen."""

VISION_GIB: Final = 2.1
"""Of a model that sees, measured: its own tower, tried with the largest picture."""

ALONE_GIB: Final = 0.13
TOGETHER_GIB: Final = 0.55
"""What communication takes outside of the framework's own memory: of one GPU, and of each of several."""

TENSORRT_GIB: Final = 2.0
"""What its kernels take while they are tuned; not measured, so rather too much."""

CPU_GIB: Final = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes in one step unless told otherwise."""

    sequences: int
    tokens: int


def limits(backend: BackendName, accelerator: Accelerator) -> Limits:
    vllm = Limits(1024, 8192) if accelerator.large else Limits(256, 2048)
    match backend:
        case "headwater":
            return Limits(512, vllm.tokens)  # pick tells it how many there are
        case "sglang":
            return Limits(512, _sglang_chunk(accelerator))
        case "tensorrt-llm":
            return Limits(2048, 8192)
        case _:
            return vllm  # what has no logs of its own is taken for no better


def _sglang_chunk(accelerator: Accelerator) -> int:
    memory = accelerator.memory_gib or 0
    return 2048 if memory < 35 else 4096 if memory < 60 else 8192 if memory < 160 else 16384


def reserve_gib(backend: BackendName, accelerator: Accelerator, shape: Shape, layout: Layout, step: Limits) -> float:
    """Of each accelerator; `step`: the most that the server takes at once."""
    if accelerator.vendor == "cpu":
        return CPU_GIB
    outside = TOGETHER_GIB if layout.gpus > 1 else ALONE_GIB
    if backend == "sglang":
        return _sglang_gib(accelerator, layout, step)
    # What comes in and goes out of a layer, and what its matrices make of it, which GPUs share.
    each = 2 * shape.hidden + shape.active / (shape.layers * shape.hidden) / layout.tensor
    layers = step.tokens * each * 2 / GIB
    if shape.vision:
        return outside + max(VISION_GIB, layers)
    if backend == "tensorrt-llm":
        outside += TENSORRT_GIB
    return outside + max(layers, SAMPLING * step.sequences * shape.vocabulary * 4 / GIB)


def _sglang_gib(accelerator: Accelerator, layout: Layout, step: Limits) -> float:
    """It sets so much aside by itself: for a chunk of a prompt, for graphs, for ranks, and for attention apart."""
    recorded = 512 if layout.stage >= 4 and accelerator.large else 256 if accelerator.large else 32
    mib = 1.5 * step.tokens + 2 * recorded
    if layout.gpus > 1:
        mib += 128 * layout.gpus
    if layout.data > 1:
        mib += recorded * layout.data * (4.5 if recorded > 300 else 3)
    return mib / 1024


def cache_gib(backend: BackendName, memory: float, fraction: float | None, weights: float, reserve: float) -> float:
    """Room for KV on one accelerator, by each server's own meaning of its fraction; below 0: it does not start.

    `fraction`: None: the default of the server, as we start it.
    """
    if backend == "sglang":  # of all, for weights and cache; without one it takes what its reserve leaves
        static = memory * fraction if fraction else memory - reserve
        return static - weights
    share = fraction or DEFAULT_FRACTION
    if backend == "tensorrt-llm":  # of what is free after loading
        return share * (memory - weights - reserve)
    return memory * share - weights - reserve  # of all


DEFAULT_FRACTION: Final = 0.9
"""The default of `spec.cache.fraction`."""
