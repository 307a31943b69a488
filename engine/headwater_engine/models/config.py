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


_LARGEST = 1e38
"""What float32 holds."""
_MOST = 2**31 - 1
_MOST_LAYERS = 10_000
"""A number beyond is no model's, and would take the memory of lists that are as long."""


class RawConfig:
    """A `config.json`, or an object in it, read with errors that name the field: as wrong types may stand anywhere."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        """`path`: where in the file the object stands, such as `rope_parameters.`"""
        self.values = values
        self._path = path

    def integer(self, name: str, default: int | None = None, *, most: int = _MOST) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise self.wrong(name, "an integer")
        if value > most:
            raise self.wrong(name, f"at most {most}")
        return int(value)

    def number(self, name: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A positive number, at least `least`."""
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise LoadError(f"config.json: {self._path}{name} is missing.")
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.wrong(name, "a positive number")
        if not least <= value <= _LARGEST:
            raise self.wrong(name, f"{least} to {_LARGEST}")
        return float(value)

    def optional(self, name: str, default: float | None = None, *, least: float = 0.0) -> float | None:
        """A number that may be null; `default` where there is none."""
        return None if self.values.get(name, default) is None else self.number(name, default, least=least)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "text")
        return value

    def object(self, name: str) -> "RawConfig":
        """The object under `name`, empty where there is none."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return RawConfig(value, f"{self._path}{name}.")

    def layers(self) -> int:
        return self.integer("num_hidden_layers", most=_MOST_LAYERS)

    def wrong(self, name: str, wanted: str) -> LoadError:
        found = repr(self.values.get(name))
        return LoadError(f"config.json: {self._path}{name} is {found[:80]}, must be {wanted}.")


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
    layers = raw.layers()
    kv_heads = raw.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise LoadError(f"config.json: {heads} num_attention_heads cannot be shared by {kv_heads} num_key_value_heads.")
    head_dim = raw.integer("head_dim", head_dim or hidden // heads)
    if head_dim % 2:
        raise LoadError(f"config.json: head_dim is {head_dim}, must be even: dimensions are rotated in pairs.")
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


_ROPE_NUMBERS = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_NEEDED = {"linear": ["factor"], "dynamic": ["factor"], "llama3": ["factor", "low_freq_factor", "high_freq_factor"]}
"""By type of rope."""


def read_rope(raw: RawConfig, head_dim: int) -> RopeConfig:
    """`rope_parameters`, or `rope_theta` and `rope_scaling` as checkpoints older than transformers 5 have them."""
    rope = rope_object(raw)
    kind = rope_type(rope)
    for name in _NEEDED.get(kind, []):
        rope.number(name)
    parameters: dict[str, Any] = {name: rope.number(name) for name in _ROPE_NUMBERS if rope.values.get(name)}
    parameters["factor"] = rope.optional("factor", least=1.0)
    parameters["attention_factor"] = rope.optional("attention_factor")
    parameters["truncate"] = rope.flag("truncate", True)
    if rope.values.get("original_max_position_embeddings") is not None:
        parameters["original_max_position_embeddings"] = rope.integer("original_max_position_embeddings")
    if kind == "factors":
        parameters["factors"] = _divisors(rope, head_dim // 2)
    if kind == "llama3" and parameters["high_freq_factor"] <= parameters["low_freq_factor"]:
        raise rope.wrong("high_freq_factor", "more than low_freq_factor")
    owner = rope if rope.values.get("rope_theta") is not None else raw
    theta = owner.number("rope_theta", 10_000.0)
    if theta <= 1:
        raise owner.wrong("rope_theta", "more than 1")
    return RopeConfig(kind, head_dim, theta, raw.integer("max_position_embeddings"), parameters)


def rope_object(raw: RawConfig) -> RawConfig:
    """Where the rotation is described; empty where nothing is said of it."""
    own = raw.object("rope_parameters")
    return own if own.values else raw.object("rope_scaling")


def rope_type(rope: RawConfig) -> str:
    return rope.text("rope_type") or rope.text("type") or "default"


def _divisors(rope: RawConfig, count: int) -> list[float]:
    factors = rope.values.get("factors")
    if not isinstance(factors, list) or len(factors) != count:
        raise rope.wrong("factors", f"a list of {count} numbers")
    each = RawConfig({str(index): factor for index, factor in enumerate(factors)}, "factors.")
    return [each.number(name) for name in each.values]


def read_windows(raw: RawConfig) -> tuple[int | None, ...]:
    """Sliding windows as Qwen configures them: in some layers, named by `layer_types` or behind `max_window_layers`."""
    layers = raw.layers()
    if not raw.flag("use_sliding_window", False):
        return (None,) * layers
    window = raw.integer("sliding_window", 4096)
    # None of them where all layers have a window, which `integer` takes for a mistake.
    full_layers = 0 if raw.values.get("max_window_layers") == 0 else raw.integer("max_window_layers", 28)
    return windows_by_layer(raw, window, tuple(layer >= full_layers for layer in range(layers)))


def windows_by_layer(raw: RawConfig, window: int, default: tuple[bool, ...]) -> tuple[int | None, ...]:
    """`window` in layers that `layer_types` names, or that `default` says where it is missing. Raises LoadError."""
    kinds, layers = raw.values.get("layer_types"), raw.layers()
    if kinds is None:
        return tuple(window if has else None for has in default)
    names = ["sliding_attention", "full_attention"]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in names for kind in kinds):
        raise LoadError(
            f"config.json: layer_types is {kinds!r}, must say {' or '.join(names)} for each of {layers} layers."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
