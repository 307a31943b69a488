"""Llama 2 and 3, SmolLM2, and the many that share their architecture."""

from headwater_engine.models.config import DecoderConfig, RawConfig, read_decoder


def llama(raw: RawConfig) -> DecoderConfig:
    attention_bias = raw.flag("attention_bias", False)
    return read_decoder(raw, qkv_bias=attention_bias, output_bias=attention_bias, mlp_bias=raw.flag("mlp_bias", False))
