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


def _shape(
    model_type: str,
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: tuple[int, int],
    vocabulary: int,
    positions: int,
    **rest: Any,
) -> Mapping[str, Any]:
    """A config.json; `heads` are those of queries, and of keys and values."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "dtype": "bfloat16",
        **rest,
    }


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": _shape(
        "llama",
        layers=2,
        hidden=64,
        intermediate=128,
        heads=(4, 2),
        vocabulary=512,
        positions=2048,
        tie_word_embeddings=True,
    ),
    "smollm2-135m": _shape(
        "llama",
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=(9, 3),
        vocabulary=49152,
        positions=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": _shape(
        "qwen2",
        layers=24,
        hidden=896,
        intermediate=4864,
        heads=(14, 2),
        vocabulary=151936,
        positions=32768,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": _shape(
        "qwen3",
        layers=28,
        hidden=1024,
        intermediate=3072,
        heads=(16, 8),
        vocabulary=151936,
        positions=40960,
        head_dim=128,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": _shape(
        "llama",
        layers=16,
        hidden=2048,
        intermediate=8192,
        heads=(32, 8),
        vocabulary=128256,
        positions=131072,
        rms_norm_eps=1e-5,
        rope_parameters={**_LLAMA3_ROPE, "factor": 32.0},
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": _shape(
        "llama",
        layers=32,
        hidden=4096,
        intermediate=14336,
        heads=(32, 8),
        vocabulary=128256,
        positions=131072,
        rms_norm_eps=1e-5,
        rope_parameters={**_LLAMA3_ROPE, "factor": 8.0},
    ),
    "mistral-7b": _shape(
        "mistral",
        layers=32,
        hidden=4096,
        intermediate=14336,
        heads=(32, 8),
        vocabulary=32768,
        positions=32768,
        rms_norm_eps=1e-5,
        rope_theta=1000000.0,
        sliding_window=None,
    ),
}
