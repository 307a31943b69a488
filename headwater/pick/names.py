"""What a model's name tells: which model it is a variant of, how many parameters it has, how its weights are stored."""

import difflib
import re
from typing import Final

_TUNED: Final = (
    r"instruct|it|chat|hf|base|pt|thinking|reasoning|preview|exp|latest|ct|sft|dpo|guard|think|jp|japanese|"
    r"retrieval|text-matching|classification|clustering"
)
_PACKED: Final = (
    r"fp8|kv|dynamic|block|static|pertensor|per-tensor|per-channel|awq|gptq|int[248]|[48]bits?|w\d+a\d+|nvfp4(?:a16)?|fp4|"
    r"mxfp[468]|qat|qad|bnb|bitsandbytes|nf4|gguf|i?q\d_(?:k(?:_[sml])?|0|xs)|quantized|autoround|modelopt|bf16|fp16|"
    r"w-mxfp4-a-fp8|tensorwise|mlx|marlin|gs?128|g32|unquantized|mobile"
)
_DATED: Final = r"v[\d.]+|\d{4}|\d{6}|1m|128k|\d{2,3}k"
_VARIANT: Final = re.compile(rf"[-_.](?:{_TUNED}|{_PACKED}|{_DATED})$")
"""What may follow a model's name without making it another model: how it was tuned, packed or dated."""

_OWNERS: Final = re.compile(r"^(?:meta|nvidia|hf|vllm|unsloth)-(?=.)")


def base(name: str) -> str:
    """`Qwen/Qwen3-32B-Instruct-2507-FP8-dynamic` -> `qwen3-32b`."""
    last = re.sub(r"[_\s]", "_", name.rstrip("/").rpartition("/")[2].lower()).removesuffix(".gguf")
    while (shorter := _VARIANT.sub("", last)) != last and re.search(r"[a-z]", shorter):
        last = shorter
    return _OWNERS.sub("", last)


def without_slip(base: str) -> str:
    """The same without a last word that is spelled nearly like one that may follow a name: `llama-3.1-8b-instuct`."""
    model, _, word = base.rpartition("-")
    return model if model and difflib.get_close_matches(word, _TUNED.split("|"), n=1, cutoff=0.75) else base


_SIZE: Final = re.compile(r"(?<![a-z\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)([mbt])(?![a-z\d])")
_ACTIVE: Final = re.compile(r"(?<![a-z\d])a(\d+(?:\.\d+)?)b(?![a-z\d])")
_OTHER: Final = re.compile(r"(?<![a-z\d])(?:e\d+(?:\.\d+)?b|\d+e)(?![a-z\d])")
"""`E2B` says what a model is worth, and the `17B-16E` of Llama 4 what one token uses: neither is its size."""


def size_in(name: str) -> float | None:
    """The number of parameters that a name tells: 8e9 of `Llama-3.1-8B`, 56e9 of `8x7B`; None: nothing sure."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    if _OTHER.search(last):
        return None
    found = _SIZE.search(last)
    if not found:
        return None
    scale = {"m": 1e6, "b": 1e9, "t": 1e12}[found[3]]
    return int(found[1] or 1) * float(found[2]) * scale


def active_in(name: str) -> float | None:
    """Those that compute one token: 3e9 of `30B-A3B`. With it a model is a mixture of experts."""
    found = _ACTIVE.search(name.rstrip("/").rpartition("/")[2].lower())
    return float(found[1]) * 1e9 if found else None


def has_experts(name: str) -> bool:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return bool(_ACTIVE.search(last) or re.search(r"(?<![a-z\d])(?:\d+x\d|moe|\d+e(?![a-z\d]))", last))
