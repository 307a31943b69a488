"""What the engine must know of a model, and the reading of a `config.json` in the form of `transformers`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import CacheSpec
from headwater_engine.layers.attention import AttentionConfig
from headwater_engine.layers.rope import RopeConfig


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the engine needs of any model: the size of its vocabulary, of its context and of its KV cache."""

    vocab_size: int
    caches: tuple[CacheSpec, ...]
    """What each layer keeps, in the order in which they run."""
    max_positions: int
    """Tokens of a sequence, prompt and output."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a Llama-like decoder: what a family reads from its `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    norm_eps: float
    tied_embeddings: bool
    attention: AttentionConfig
    rope: RopeConfig
    mlp_bias: bool
    windows: tuple[int | None, ...]
    """For each layer, how many tokens its attention sees. None: all."""
    norm_offset: float = 0.0
    """Added to the weights of all norms."""
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    """Logits become softcap * tanh(logit / softcap)."""


class RawConfig:
    """A `config.json`, read with errors that name the field."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise LoadError(f"config.json: {name} is {value!r}, must be an integer.")
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise LoadError(f"config.json: {name} is missing.")
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise LoadError(f"config.json: {name} is {value!r}, must be a positive number.")
        return value

    def optional(self, name: str, default: float | None) -> float | None:
        """A number that may be null; `default` where there is none."""
        return None if self.values.get(name, default) is None else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise LoadError(f"config.json: {name} is {value!r}, must be true or false.")
        return value


def read_decoder(
    raw: RawConfig,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    head_norms: bool = False,
    tied: bool = False,
    windows: tuple[int | None, ...] | None = None,
) -> DecoderConfig:
    """The fields that all Llama-like families share; the arguments are where they differ. Raises LoadError.

    `head_dim` and `tied` are the family's defaults; without a head_dim, the hidden size is divided among the heads.
    """
    hidden, heads = raw.integer("hidden_size"), raw.integer("num_attention_heads")
    layers = raw.integer("num_hidden_layers")
    kv_heads = raw.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise LoadError(f"config.json: {heads} num_attention_heads cannot be shared by {kv_heads} num_key_value_heads.")
    head_dim = raw.integer("head_dim", head_dim or hidden // heads)
    eps = raw.number("rms_norm_eps", 1e-6)
    return DecoderConfig(
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=raw.integer("intermediate_size"),
        num_layers=layers,
        norm_eps=eps,
        tied_embeddings=raw.flag("tie_word_embeddings", tied),
        attention=AttentionConfig(heads, kv_heads, head_dim, qkv_bias, output_bias, eps if head_norms else None),
        rope=read_rope(raw, head_dim),
        mlp_bias=mlp_bias,
        windows=windows or (None,) * layers,
    )


def read_rope(raw: RawConfig, head_dim: int) -> RopeConfig:
    """`rope_parameters`, or `rope_theta` and `rope_scaling` as checkpoints older than transformers 5 have them."""
    parameters = raw.values.get("rope_parameters") or raw.values.get("rope_scaling") or {}
    rope = RawConfig({"rope_theta": raw.values.get("rope_theta"), **parameters})
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    needed = {"linear": ["factor"], "dynamic": ["factor"], "llama3": ["factor", "low_freq_factor", "high_freq_factor"]}
    for name in needed.get(kind, []):
        rope.number(name)
    return RopeConfig(
        type=kind,
        dim=head_dim,
        theta=rope.number("rope_theta", 10_000.0),
        trained_positions=raw.integer("max_position_embeddings"),
        parameters=parameters,
    )


def read_windows(raw: RawConfig) -> tuple[int | None, ...]:
    """Sliding windows as Qwen configures them: in some layers, named by `layer_types` or behind `max_window_layers`."""
    layers = raw.integer("num_hidden_layers")
    if not raw.flag("use_sliding_window", False):
        return (None,) * layers
    window, full_layers = raw.integer("sliding_window", 4096), raw.values.get("max_window_layers", 28)
    return windows_by_layer(raw, window, tuple(layer >= full_layers for layer in range(layers)))


def windows_by_layer(raw: RawConfig, window: int, default: tuple[bool, ...]) -> tuple[int | None, ...]:
    """`window` in layers that `layer_types` names, or that `default` says where it is missing. Raises LoadError."""
    kinds, layers = raw.values.get("layer_types"), raw.integer("num_hidden_layers")
    if kinds is None:
        return tuple(window if has else None for has in default)
    names = ["sliding_attention", "full_attention"]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in names for kind in kinds):
        raise LoadError(
            f"config.json: layer_types is {kinds!r}, must say {' or '.join(names)} for each of {layers} layers."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
