"""How weights are stored: bytes of a parameter with its scales, which parts stay in 16 bits, and what names call it."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

Precision = Literal["none", "fp8", "int8", "mxfp8", "awq", "gptq", "int4", "nvfp4", "mxfp4", "gguf", "bnb"]


@dataclass(frozen=True, slots=True)
class Format:
    bytes: float
    """Of a quantized parameter, with its share of scales and zeros."""
    experts_only: bool = False
    """Whether of a mixture of experts nothing but the experts is quantized, as checkpoints of this format are made."""
    padded: int = 1
    """Servers pad the rows of an expert to a multiple of this when they load it."""
    block: int = 1
    """Rows that share a scale, which no GPU border may cut."""


PRECISIONS: Final[dict[Precision, Format]] = {
    "none": Format(2.0),
    # One scale for a block of 128 x 128.
    "fp8": Format(1.0, block=128),
    "int8": Format(1.0),
    # One 8-bit scale for 32.
    "mxfp8": Format(1 + 1 / 32),
    # A 16-bit scale and a 4-bit zero for each group of 128. Some quantize more than the experts; Qwen's own do not.
    "awq": Format(0.52, experts_only=True),
    "gptq": Format(0.52, experts_only=True),
    # compressed-tensors, as for Kimi K2: a 16-bit scale for each group of 32.
    "int4": Format(0.5 + 2 / 32, experts_only=True),
    # An 8-bit scale for each group of 16.
    "nvfp4": Format(0.5 + 1 / 16, experts_only=True),
    # An 8-bit scale for each group of 32; kernels want rows in multiples of 256.
    "mxfp4": Format(0.5 + 1 / 32, experts_only=True, padded=256),
    # Q4_K_M, the commonest; `gguf_bytes` knows the others.
    "gguf": Format(0.606),
    # NF4: a 32-bit scale for each group of 64.
    "bnb": Format(0.5 + 4 / 64),
}

_GGUF_BITS: Final = {
    "q2_k": 3.35, "q3_k_s": 3.5, "q3_k_m": 3.91, "q3_k_l": 4.27, "q4_0": 4.5, "q4_k_s": 4.58, "q4_k_m": 4.85,
    "q5_0": 5.5, "q5_k_s": 5.54, "q5_k_m": 5.69, "q6_k": 6.56, "q8_0": 8.5, "iq4_xs": 4.25, "f16": 16, "bf16": 16,
}  # fmt: skip
"""Bits of a weight, as llama.cpp's quantize tool says for a model of 8B."""

_WORDS: Final = (
    ("nvfp4", r"nvfp4|fp4"),
    ("mxfp4", r"mxfp4"),
    ("mxfp8", r"mxfp8"),
    ("awq", r"awq"),
    ("gptq", r"gptq"),
    ("gguf", r"gguf|i?q\d_(?:k(?:_[sml])?|0|xs)"),
    ("bnb", r"bnb(?:-4bit)?|bitsandbytes|nf4"),
    ("int4", r"w4a16|w4a8|int4|4bit|autoround"),
    ("int8", r"w8a8|w8a16|int8|8bit"),
    ("fp8", r"fp8"),
    ("none", r"bf16|fp16"),
)


def precision_in(name: str) -> Precision | None:
    """What the last part of a model's name says of its weights; None: nothing.

    The format comes before its width, as in `AWQ-INT4`; and weights before activations, as in `w-mxfp4-a-fp8`.
    """
    last = name.rstrip("/").rpartition("/")[2].lower()
    for precision, words in _WORDS:
        if re.search(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", last):
            return next(each for each in get_args(Precision) if each == precision)
    return None


def bytes_of(precision: Precision, name: str = "") -> float:
    """Of one quantized parameter; the name may say which type of GGUF."""
    if precision == "gguf" and (found := re.search("|".join(sorted(_GGUF_BITS, key=len, reverse=True)), name.lower())):
        return _GGUF_BITS[found[0]] / 8
    return PRECISIONS[precision].bytes
