"""Qwen3 (dense): Llama with norms over each query and key head, whose size is independent of the hidden size."""

from headwater_engine.layers.linears import Linears
from headwater_engine.models.config import RawConfig, read_decoder, read_windows
from headwater_engine.models.decoder import Decoder, Progress
from headwater_engine.models.families.llama import llama_like
from headwater_engine.models.family import Family


def _qwen3(raw: RawConfig, linears: Linears, progress: Progress) -> Decoder:
    biased = raw.flag("attention_bias", False)
    config = read_decoder(
        raw, head_dim=128, qkv_bias=biased, output_bias=biased, head_norms=True, windows=read_windows(raw)
    )
    return llama_like(config, linears, progress)


FAMILY = Family(_qwen3)
