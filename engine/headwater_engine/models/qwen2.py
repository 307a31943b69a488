"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and sliding windows in the upper layers of some."""

from headwater_engine.models.config import DecoderConfig, RawConfig, read_decoder, read_windows


def qwen2(raw: RawConfig) -> DecoderConfig:
    return read_decoder(raw, qkv_bias=True, windows=read_windows(raw))
