"""How many parameters a decoder has, counted from its config.json: by part, since parts are quantized differently."""

from dataclasses import dataclass
from typing import Any, Literal

Mixer = Literal["full", "sliding", "linear", "mamba", "none"]


@dataclass(frozen=True, slots=True)
class Layer:
    mixer: Mixer
    """How a token sees others."""
    feed: Literal["config", "experts", "dense", "none"] = "config"
    """What follows; config: as it says for all layers."""


@dataclass(frozen=True, slots=True)
class Parameters:
    embedding: float
    looked_up: float
    """Of these, what a token only looks up: the embedding itself, where the output head is another matrix."""
    experts: float
    """Of all routed experts."""
    used: float
    """Of those experts that one token is routed to."""
    rest: float
    """Attention, dense layers, shared experts, the vision tower."""

    @property
    def total(self) -> float:
        return self.embedding + self.experts + self.rest

    @property
    def active(self) -> float:
        return self.embedding - self.looked_up + self.used + self.rest


def count(outer: dict[str, Any], layers: list[Layer]) -> Parameters:
    text = inner(outer)
    hidden = text["hidden_size"]
    tied = outer.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    table = float(text["vocab_size"] * hidden)
    # A table of its own for each layer (Gemma's E models).
    per_layer = (text.get("hidden_size_per_layer_input") or 0) * len(layers)
    tables = float(per_layer * (text.get("vocab_size_per_layer_input") or 0))
    rest = float(per_layer * hidden * 3) + _vision(outer)
    experts = used = 0.0
    for number, layer in enumerate(layers):
        of_experts, of_used, of_rest = _feed_forward(text, number, layer)
        experts, used, rest = experts + of_experts, used + of_used, rest + of_rest + _mixer(text, layer.mixer)
    return Parameters(table * (1 if tied else 2) + tables, tables + (0 if tied else table), experts, used, rest)


def inner(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the decoder."""
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        if isinstance(config.get(name), dict):
            return inner(config[name])
    return config


def expert_count(text: dict[str, Any]) -> int:
    names = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    return next((int(text[name]) for name in names if text.get(name)), 0)


def experts_used(text: dict[str, Any]) -> int:
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "top_k_experts")
    return next((int(text[name]) for name in names if text.get(name)), 1 if expert_count(text) else 0)


def expert_width(text: dict[str, Any]) -> int:
    names = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
    return next((int(text[name]) for name in names if text.get(name)), 0) if expert_count(text) else 0


def head_dim(text: dict[str, Any]) -> int:
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def _mixer(text: dict[str, Any], mixer: Mixer) -> float:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    match mixer:
        case "linear":
            return _linear(text)
        case "mamba":
            return _mamba(text)
        case "none":
            return 0.0
    if text.get("kv_lora_rank"):
        return _latent(text)
    if text.get("o_lora_rank"):  # DeepSeek V4: queries and the output go through low ranks, keys and values are shared
        size, rank = head_dim(text), text["q_lora_rank"]
        groups = text.get("o_groups", 1)
        out = heads * size * text["o_lora_rank"] + groups * text["o_lora_rank"] * hidden
        return float(hidden * rank + rank * heads * size + hidden * size + out)
    size, kv = head_dim(text), text.get("num_key_value_heads") or heads
    if mixer == "full" and text.get("global_head_dim"):  # Gemma 4
        size, kv = text["global_head_dim"], text.get("num_global_key_value_heads") or kv
    kv_parts = 1 if mixer == "full" and text.get("attention_k_eq_v") else 2
    gate = 2 if text.get("attn_output_gate") else 1
    return float(hidden * heads * size * (1 + gate) + kv_parts * hidden * kv * size)


def _latent(text: dict[str, Any]) -> float:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    nope, rope = text.get("qk_nope_head_dim", 128), text.get("qk_rope_head_dim", 64)
    value, latent, low = text.get("v_head_dim", 128), text["kv_lora_rank"], text.get("q_lora_rank")
    query = hidden * low + low * heads * (nope + rope) if low else hidden * heads * (nope + rope)
    return float(query + hidden * (latent + rope) + latent * heads * (nope + value) + heads * value * hidden)


def _linear(text: dict[str, Any]) -> float:
    hidden = text["hidden_size"]
    if own := text.get("linear_attn_config"):  # Kimi's delta attention
        width = own["num_heads"] * own["head_dim"]
        return float(hidden * width * 5)
    key = text.get("linear_num_key_heads", 16) * text.get("linear_key_head_dim", 128)
    value = text.get("linear_num_value_heads", 32) * text.get("linear_value_head_dim", 128)
    return float(hidden * (2 * key + 2 * value + 2 * text.get("linear_num_value_heads", 32)) + value * hidden)


def _mamba(text: dict[str, Any]) -> float:
    hidden = text["hidden_size"]
    width = text["mamba_num_heads"] * text["mamba_head_dim"]
    return float(hidden * (2 * width + 2 * text.get("n_groups", 8) * text["ssm_state_size"]) + width * hidden)


def _feed_forward(text: dict[str, Any], number: int, layer: Layer) -> tuple[float, float, float]:
    """Of all experts, of those that one token uses, and of what every token uses."""
    if layer.feed == "none":
        return 0.0, 0.0, 0.0
    hidden = text["hidden_size"]
    matrices = 2 if text.get("mlp_hidden_act") == "relu2" else 3
    if not _has_experts(text, number, layer):
        width = text.get("dense_intermediate_size") or text.get("intermediate_size_mlp") or text["intermediate_size"]
        return 0.0, 0.0, float(matrices * hidden * width)
    many, width = expert_count(text), expert_width(text)
    inside = text.get("moe_latent_size") or text.get("routed_expert_hidden_size") or hidden
    one = float(matrices * inside * width)
    rest = matrices * hidden * _shared_width(text, width) + hidden * many
    if inside != hidden:
        rest += 2 * hidden * inside
    if text.get("enable_moe_block"):  # Gemma 4 has a dense layer beside the experts
        rest += matrices * hidden * text["intermediate_size"]
    return many * one, experts_used(text) * one, float(rest)


def _shared_width(text: dict[str, Any], width: int) -> int:
    """Of the experts that every token uses, together."""
    names = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim")
    if found := next((text[name] for name in names if text.get(name)), None):
        return int(found)
    alike = text.get("n_shared_experts") or text.get("num_shared_experts") or ("intermediate_size_mlp" in text)
    return int(alike) * width


def _has_experts(text: dict[str, Any], number: int, layer: Layer) -> bool:
    if not expert_count(text) or layer.feed == "dense":
        return False
    if layer.feed == "experts":
        return True
    if isinstance(where := text.get("moe_layer_freq"), list):
        return bool(where[number])
    if isinstance(where := text.get("moe_layers_enum"), str):  # Step
        return str(number) in where.split(",")
    if number in (text.get("mlp_only_layers") or []) or number < (text.get("first_k_dense_replace") or 0):
        return False
    step = text.get("interleave_moe_layer_step") or text.get("decoder_sparse_step") or 1
    return bool((number + 1) % step == 0)


def _vision(outer: dict[str, Any]) -> float:
    vision = outer.get("vision_config")
    if not isinstance(vision, dict):
        return 0.0
    layers = next(
        (vision[name] for name in ("num_hidden_layers", "depth", "vt_num_hidden_layers") if name in vision), 0
    )
    hidden = vision.get("hidden_size") or vision.get("vt_hidden_size") or 0
    wide = vision.get("intermediate_size") or vision.get("vt_intermediate_size") or 4 * hidden
    return float(layers * (4 * hidden**2 + 2 * hidden * wide))
