"""Mistral: Llama with a sliding window in every layer, in those versions that have one."""

from headwater_engine.models.config import DecoderConfig, RawConfig, read_decoder


def mistral(raw: RawConfig) -> DecoderConfig:
    layers = raw.integer("num_hidden_layers")
    # `null` says that there is no window; a config that says nothing means the window of the first Mistral.
    window = raw.integer("sliding_window", 4096) if raw.values.get("sliding_window", 4096) is not None else None
    return read_decoder(raw, windows=(window,) * layers)
