"""Qwen3 (dense): Llama with norms over each query and key head, whose size is independent of the hidden size."""

from headwater_engine.models.config import DecoderConfig, RawConfig, read_decoder, read_windows


def qwen3(raw: RawConfig) -> DecoderConfig:
    attention_bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw,
        head_dim=128,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        head_norms=True,
        windows=read_windows(raw),
    )
