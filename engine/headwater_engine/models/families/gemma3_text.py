"""Gemma 3, its text models: Gemma 2 with norms over heads instead of caps, and a rotation of their own in windows."""

from headwater_engine.layers.linears import Linears
from headwater_engine.layers.rope import Rope
from headwater_engine.models.config import RawConfig, read_rope
from headwater_engine.models.decoder import Decoder, Progress
from headwater_engine.models.families.gemma2 import GemmaBlock, read_gemma
from headwater_engine.models.family import Family


def _gemma3(raw: RawConfig, linears: Linears, progress: Progress) -> Decoder:
    far, near = _by_reach(raw)
    period = raw.integer("sliding_window_pattern", 6)
    config = read_gemma(far, period, head_norms=True, score_cap=None, logit_cap=None)
    device = linears.kernels.device
    far_rope, near_rope = Rope(config.rope, device), Rope(read_rope(near, config.rope.dim), device)

    def block(index: int, layer: Linears) -> GemmaBlock:
        rope = far_rope if config.windows[index] is None else near_rope
        return GemmaBlock(config, index, layer, rope.table)

    return Decoder(config, [far_rope, near_rope], linears, block, progress)


def _by_reach(raw: RawConfig) -> tuple[RawConfig, RawConfig]:
    """The config with the rotation of layers that see everything, and with that of layers with a window.

    transformers 5 writes `rope_parameters` by kind of layer; before, there were a theta for each and one scaling.
    """
    by_kind = raw.object("rope_parameters")
    far = dict(by_kind.object("full_attention").values or raw.object("rope_scaling").values)
    near = dict(by_kind.object("sliding_attention").values)
    far.setdefault("rope_theta", raw.number("rope_theta", 1_000_000.0))
    near.setdefault("rope_theta", raw.number("rope_local_base_freq", 10_000.0))
    # `max_position_embeddings` counts what the scaling reaches, and not what it starts from.
    factor = RawConfig(far, "rope_parameters.full_attention.").number("factor", 1.0, least=1.0)
    trained = max(1, int(raw.integer("max_position_embeddings") / factor))
    return (
        RawConfig({**raw.values, "rope_parameters": far, "max_position_embeddings": trained}),
        RawConfig({**raw.values, "rope_parameters": near}),
    )


FAMILY = Family(_gemma3, activation="gelu_pytorch_tanh")
