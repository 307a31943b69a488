"""Shapes of models: what decides how many bytes weights and KV cache take.

The table holds published shapes (each model's `config.json`), so that for them the KV bytes of a token are exact. For
any other model they are estimated from the number of parameters, by a formula that errs on the high side.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    family: str | None
    parameters: float
    """All of them, also of experts that a token does not use."""
    active: float
    """Those that compute one token."""
    embedding: float
    """Parameters of the embedding and the output head, which quantization leaves in 16 bits."""
    layers: int
    kv_heads: int
    head_dim: int
    positions: int | None
    """Tokens of prompt and output that the model was made for; None: not known."""
    latent: int = 0
    """Elements that each layer keeps of a token in place of keys and values (multi-head latent attention)."""
    native_bytes: float = 2.0
    """Bytes of a parameter as published; less than 2 where the checkpoint is quantized from the start."""
    hub: str | None = None
    """Where the weights are, as OWNER/NAME."""
    estimated: bool = False

    @property
    def kv_elements(self) -> int:
        """What one token leaves in the cache, over all layers."""
        return self.layers * (self.latent or 2 * self.kv_heads * self.head_dim)

    def kv_copies(self, tensor: int) -> float:
        """How often a token is kept when `tensor` GPUs share a layer: a head that cannot be cut is on several."""
        return max(1.0, tensor / (1 if self.latent else self.kv_heads))

    def divides(self, tensor: int) -> bool:
        """Whether servers can spread the KV heads evenly over so many GPUs."""
        return bool(self.latent) or self.kv_heads % tensor == 0 or tensor % self.kv_heads == 0


def _shape(
    hub: str,
    family: str,
    billions: float,
    heads: tuple[int, int, int],
    vocabulary: tuple[int, int],
    positions: int,
    *,
    tied: bool = False,
    active: float | None = None,
    latent: int = 0,
    native_bytes: float = 2.0,
) -> Shape:
    """`heads`: layers, KV heads, head size. `vocabulary`: its size, and the model's width."""
    return Shape(
        name=re.sub(r"-([Ii]nstruct|it|chat-hf)(-v[\d.]+|-\d+)?$", "", hub.rpartition("/")[2]),
        family=family,
        parameters=billions * 1e9,
        active=(active or billions) * 1e9,
        embedding=vocabulary[0] * vocabulary[1] * (1 if tied else 2),
        layers=heads[0],
        kv_heads=heads[1],
        head_dim=heads[2],
        positions=positions,
        latent=latent,
        native_bytes=native_bytes,
        hub=hub,
    )


SHAPES: Final = (
    _shape("meta-llama/Llama-2-7b-chat-hf", "llama", 6.738, (32, 32, 128), (32000, 4096), 4096),
    _shape("meta-llama/Llama-2-13b-chat-hf", "llama", 13.016, (40, 40, 128), (32000, 5120), 4096),
    _shape("meta-llama/Llama-3.2-1B-Instruct", "llama", 1.236, (16, 8, 64), (128256, 2048), 131072, tied=True),
    _shape("meta-llama/Llama-3.2-3B-Instruct", "llama", 3.213, (28, 8, 128), (128256, 3072), 131072, tied=True),
    _shape("meta-llama/Llama-3.1-8B-Instruct", "llama", 8.030, (32, 8, 128), (128256, 4096), 131072),
    _shape("meta-llama/Llama-3.3-70B-Instruct", "llama", 70.554, (80, 8, 128), (128256, 8192), 131072),
    _shape("meta-llama/Llama-3.1-70B-Instruct", "llama", 70.554, (80, 8, 128), (128256, 8192), 131072),
    _shape("meta-llama/Llama-3.1-405B-Instruct", "llama", 405.853, (126, 8, 128), (128256, 16384), 131072),
    _shape("Qwen/Qwen2.5-0.5B-Instruct", "qwen", 0.494, (24, 2, 64), (151936, 896), 32768, tied=True),
    _shape("Qwen/Qwen2.5-1.5B-Instruct", "qwen", 1.544, (28, 2, 128), (151936, 1536), 32768, tied=True),
    _shape("Qwen/Qwen2.5-3B-Instruct", "qwen", 3.086, (36, 2, 128), (151936, 2048), 32768, tied=True),
    _shape("Qwen/Qwen2.5-7B-Instruct", "qwen", 7.616, (28, 4, 128), (152064, 3584), 32768),
    _shape("Qwen/Qwen2.5-14B-Instruct", "qwen", 14.770, (48, 8, 128), (152064, 5120), 32768),
    _shape("Qwen/Qwen2.5-32B-Instruct", "qwen", 32.764, (64, 8, 128), (152064, 5120), 32768),
    _shape("Qwen/Qwen2.5-72B-Instruct", "qwen", 72.706, (80, 8, 128), (152064, 8192), 32768),
    _shape("Qwen/Qwen3-0.6B", "qwen", 0.596, (28, 8, 128), (151936, 1024), 40960, tied=True),
    _shape("Qwen/Qwen3-1.7B", "qwen", 1.721, (28, 8, 128), (151936, 2048), 40960, tied=True),
    _shape("Qwen/Qwen3-4B", "qwen", 4.022, (36, 8, 128), (151936, 2560), 40960, tied=True),
    _shape("Qwen/Qwen3-8B", "qwen", 8.191, (36, 8, 128), (151936, 4096), 40960),
    _shape("Qwen/Qwen3-14B", "qwen", 14.768, (40, 8, 128), (151936, 5120), 40960),
    _shape("Qwen/Qwen3-32B", "qwen", 32.762, (64, 8, 128), (151936, 5120), 40960),
    _shape("Qwen/Qwen3-30B-A3B", "qwen-moe", 30.532, (48, 4, 128), (151936, 2048), 40960, active=3.35),
    _shape("Qwen/Qwen3-235B-A22B", "qwen-moe", 235.094, (94, 4, 128), (151936, 4096), 40960, active=22.19),
    _shape("mistralai/Mistral-7B-Instruct-v0.3", "mistral", 7.248, (32, 8, 128), (32768, 4096), 32768),
    _shape("mistralai/Mistral-Nemo-Instruct-2407", "mistral", 12.248, (40, 8, 128), (131072, 5120), 131072),
    _shape("mistralai/Mistral-Small-24B-Instruct-2501", "mistral", 23.572, (40, 8, 128), (131072, 5120), 32768),
    _shape("mistralai/Mistral-Large-Instruct-2407", "mistral", 122.610, (88, 8, 128), (32768, 12288), 131072),
    _shape("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", 46.703, (32, 8, 128), (32000, 4096), 32768, active=12.88),
    _shape(
        "mistralai/Mixtral-8x22B-Instruct-v0.1", "mixtral", 140.630, (56, 8, 128), (32768, 6144), 65536, active=39.15
    ),
    # Gemma keeps only a window of some layers' tokens; counting all of them is an upper bound.
    _shape("google/gemma-2-2b-it", "gemma", 2.614, (26, 4, 256), (256000, 2304), 8192, tied=True),
    _shape("google/gemma-2-9b-it", "gemma", 9.242, (42, 8, 256), (256000, 3584), 8192, tied=True),
    _shape("google/gemma-2-27b-it", "gemma", 27.227, (46, 16, 128), (256000, 4608), 8192, tied=True),
    _shape("google/gemma-3-1b-it", "gemma", 1.000, (26, 1, 256), (262144, 1152), 32768, tied=True),
    _shape("google/gemma-3-4b-it", "gemma", 4.300, (34, 4, 256), (262208, 2560), 131072, tied=True),
    _shape("google/gemma-3-12b-it", "gemma", 12.187, (48, 8, 256), (262208, 3840), 131072, tied=True),
    _shape("google/gemma-3-27b-it", "gemma", 27.432, (62, 16, 128), (262208, 5376), 131072, tied=True),
    _shape("microsoft/Phi-3-mini-4k-instruct", "phi", 3.821, (32, 32, 96), (32064, 3072), 4096),
    _shape("microsoft/phi-4", "phi", 14.660, (40, 10, 128), (100352, 5120), 16384),
    _shape("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm", 0.1345, (30, 3, 64), (49152, 576), 8192, tied=True),
    _shape("HuggingFaceTB/SmolLM2-360M-Instruct", "smollm", 0.3618, (32, 5, 64), (49152, 960), 8192, tied=True),
    _shape("HuggingFaceTB/SmolLM2-1.7B-Instruct", "smollm", 1.711, (24, 32, 64), (49152, 2048), 8192, tied=True),
    # Published in FP8.
    _shape(
        "deepseek-ai/DeepSeek-V3",
        "deepseek",
        671.026,
        (61, 128, 128),
        (129280, 7168),
        163840,
        active=37.0,
        latent=576,
        native_bytes=1.0,
    ),
    _shape(
        "deepseek-ai/DeepSeek-R1",
        "deepseek",
        671.026,
        (61, 128, 128),
        (129280, 7168),
        163840,
        active=37.0,
        latent=576,
        native_bytes=1.0,
    ),
    # Published in MXFP4; the bytes are those that make the model card's 12.8 and 60.8 GiB.
    _shape(
        "openai/gpt-oss-20b", "gpt-oss", 20.91, (24, 8, 64), (201088, 2880), 131072, active=3.61, native_bytes=0.579
    ),
    _shape(
        "openai/gpt-oss-120b", "gpt-oss", 116.83, (36, 8, 64), (201088, 2880), 131072, active=5.13, native_bytes=0.544
    ),
)

FAMILIES: Final = tuple(dict.fromkeys(shape.family for shape in SHAPES if shape.family))

SAME_SIZE: Final = 0.1
"""How far two sizes may differ, as a share, to be called the same: 8B is 8.03B."""

_VARIANT: Final = (
    r"(-(instruct|it|chat|hf|base|pt|thinking|fp8|dynamic|awq|gptq|int[48]|[48]bit|w\d+a\d+"
    r"|quantized|v[\d.]+|\d{4}))*"
)
"""What may follow a model's name without making it another model: how it was tuned, packed or dated."""


def named(name: str) -> Shape | None:
    """The known model of which this is the name or a variant: with or without owner, `-Instruct`, `-AWQ`."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    for shape in sorted(SHAPES, key=lambda shape: -len(shape.name)):
        if re.fullmatch(rf"(.+-)?{re.escape(shape.name.lower())}{_VARIANT}", last):
            return shape
    return None


def like(family: str, parameters: float) -> Shape | None:
    """The shape of the family's known model that is nearest in size, if it has the same size."""
    same = [shape for shape in SHAPES if shape.family == family]
    nearest = min(same, key=lambda shape: abs(math.log(shape.parameters / parameters)), default=None)
    if nearest is None or abs(nearest.parameters / parameters - 1) > SAME_SIZE:
        return None
    return replace(nearest, name=f"A model like {nearest.name}", positions=None, hub=None)


def family_in(name: str) -> str | None:
    """The family that a name tells; the last one, since `DeepSeek-R1-Distill-Llama-8B` is a Llama."""
    if known := named(name):
        return known.family
    last = name.rstrip("/").rpartition("/")[2].lower()
    # Not within a word: there is a phi in every dolphin.
    found = list(re.finditer(rf"(?<![a-z])({'|'.join(map(re.escape, FAMILIES))})", last))
    return found[-1][1] if found else None


def size_in(name: str) -> float | None:
    """The number of parameters that a name tells: 8e9 of `Llama-3.1-8B`, 56e9 of `8x7B`."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    found = re.search(r"(?<![a-z\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)([mb])(?![a-z\d])", last)
    if not found:
        return None
    return int(found[1] or 1) * float(found[2]) * (1e9 if found[3] == "b" else 1e6)


def estimate(parameters: float, family: str | None = None) -> Shape:
    """A shape that a decoder with so many parameters may have.

    Layers of width h have 12 h^2 parameters, and models are about 100 times as wide as they have layers:
    layers = (parameters / 120,000)^(1/3). With 8 KV heads of 128, the commonest choice, that is 28 % more KV than
    Llama-3.1-8B has, and 5 % more than its sibling with 70B. The embedding is that of a vocabulary of 128,000.
    """
    layers = max(1, math.ceil((parameters / 120_000) ** (1 / 3)))
    return Shape(
        name=f"A model of {size_text(parameters)} parameters",
        family=family,
        parameters=parameters,
        active=parameters,
        embedding=min(2 * 128_000 * 100.0 * layers, parameters / 4),
        layers=layers,
        kv_heads=8,
        head_dim=128,
        positions=None,
        estimated=True,
    )


def size_text(parameters: float) -> str:
    """`70.6B`, `135M`."""
    if parameters < 1e9:
        return f"{parameters / 1e6:,.0f}M"
    return f"{parameters / 1e9:,.1f}B"
