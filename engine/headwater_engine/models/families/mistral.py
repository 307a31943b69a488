"""Mistral: Llama with a sliding window in every layer, in those versions that have one."""

from headwater_engine.layers.linears import Linears
from headwater_engine.models.config import RawConfig, read_decoder
from headwater_engine.models.decoder import Decoder, Progress
from headwater_engine.models.families.llama import llama_like
from headwater_engine.models.family import Family


def _mistral(raw: RawConfig, linears: Linears, progress: Progress) -> Decoder:
    layers = raw.layers()
    # `null` says that there is no window; a config that says nothing means the window of the first Mistral.
    window = raw.integer("sliding_window", 4096) if raw.values.get("sliding_window", 4096) is not None else None
    return llama_like(read_decoder(raw, windows=(window,) * layers), linears, progress)


FAMILY = Family(_mistral)
