"""Shapes of well-known models for `random:NAME`: benchmarks and tests need the sizes, not the weights."""

from collections.abc import Mapping
from typing import Any

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _shape(model_type: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, **rest: Any) -> Any:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "dtype": "bfloat16",
        **rest,
    }


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": _shape("llama", 2, 64, 128, 4, 2, vocab_size=512, max_position_embeddings=2048, tie_word_embeddings=True),
    "smollm2-135m": _shape(
        "llama",
        30,
        576,
        1536,
        9,
        3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": _shape(
        "qwen2",
        24,
        896,
        4864,
        14,
        2,
        vocab_size=151936,
        max_position_embeddings=32768,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": _shape(
        "qwen3",
        28,
        1024,
        3072,
        16,
        8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": _shape(
        "llama",
        16,
        2048,
        8192,
        32,
        8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={**_LLAMA3_ROPE, "factor": 32.0},
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": _shape(
        "llama",
        32,
        4096,
        14336,
        32,
        8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={**_LLAMA3_ROPE, "factor": 8.0},
    ),
    "mistral-7b": _shape(
        "mistral",
        32,
        4096,
        14336,
        32,
        8,
        vocab_size=32768,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_theta=1000000.0,
        sliding_window=None,
    ),
}
