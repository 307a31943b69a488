"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and sliding windows in the upper layers of some."""

from headwater_engine.layers.linears import Linears
from headwater_engine.models.config import RawConfig, read_decoder, read_windows
from headwater_engine.models.decoder import Decoder, Progress
from headwater_engine.models.families.llama import llama_like
from headwater_engine.models.family import Family


def _qwen2(raw: RawConfig, linears: Linears, progress: Progress) -> Decoder:
    return llama_like(read_decoder(raw, qkv_bias=True, windows=read_windows(raw)), linears, progress)


FAMILY = Family(_qwen2)
