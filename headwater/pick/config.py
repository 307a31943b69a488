"""A model's config.json, read: its shape with what each kind of layer keeps of a request.

Configs differ in names more than in substance; what is read here are the names that model families use for the same
thing. What a config does not say is not made up: `ConfigError` says which field is missing.
"""

from itertools import groupby
from typing import Any, Final

from headwater.pick.parameters import (
    Layer,
    Mixer,
    count,
    expert_count,
    expert_width,
    experts_used,
    head_dim,
    inner,
)
from headwater.pick.precision import Precision
from headwater.pick.shape import Kept, Shape

_FAMILIES: Final = (
    # By the beginning of `model_type`, the longest first.
    ("qwen2_moe", "qwen-moe"),
    ("qwen3_moe", "qwen-moe"),
    ("qwen3_vl_moe", "qwen-moe"),
    ("qwen3_next", "qwen-hybrid"),
    ("qwen3_5", "qwen-hybrid"),
    ("qwen", "qwen"),
    ("llama4", "llama4"),
    ("llama", "llama"),
    ("mixtral", "mixtral"),
    ("mistral", "mistral"),
    ("ministral", "mistral"),
    ("deepseek", "deepseek"),
    ("kimi", "kimi"),
    ("glm", "glm"),
    ("minimax", "minimax"),
    ("gpt_oss", "gpt-oss"),
    ("gemma", "gemma"),
    ("phi", "phi"),
    ("nemotron", "nemotron"),
    ("granite", "granite"),
    ("olmo", "olmo"),
    ("exaone", "exaone"),
    ("smollm3", "smollm3"),
    ("smollm", "smollm"),
    ("codellama", "llama"),
    ("meta_llama", "llama"),
    ("mathstral", "mistral"),
    ("qwq", "qwen"),
    ("ernie", "ernie"),
    ("hunyuan", "hunyuan"),
    ("hy", "hunyuan"),
    ("step", "step"),
    ("mimo", "mimo"),
    ("longcat", "longcat"),
)

_MIXERS: Final[dict[str, Mixer]] = {
    "full_attention": "full",
    "attention": "full",
    "*": "full",
    # Servers keep all tokens of these by default: a cache with holes made decoding slower.
    "chunked_attention": "full",
    "sliding_attention": "sliding",
    "linear_attention": "linear",
    "mamba": "mamba",
    "M": "mamba",
    "conv": "none",
}


_MOST_LAYERS: Final = 10_000
"""Of any model; more is a slip, and would be counted one by one."""


class ConfigError(ValueError):
    """What a config.json lacks; one sentence."""


def read_config(config: dict[str, Any], name: str) -> Shape:
    """The shape that a config.json describes. Raises ConfigError."""
    try:
        shape = _read(config, name)
        sensible = _is_sensible(shape)
    except KeyError as error:
        raise ConfigError(f"{name}: its config.json has no {error.args[0]}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, IndexError):
        raise ConfigError(f"{name}: its config.json has a field of an unknown form") from None
    if not sensible:
        raise ConfigError(f"{name}: its config.json has a size that is not above 0")
    return shape


def _is_sensible(shape: Shape) -> bool:
    """Whether all sizes are. Raises TypeError where one is no number."""
    sizes = (shape.layers, shape.hidden, shape.heads, shape.vocabulary, shape.active, shape.embedding)
    kept = (part for each in shape.kept for part in (each.heads, each.width))
    positions = 1 if shape.positions is None else shape.positions
    return min(*sizes, *kept, positions) > 0 and min(shape.experts, shape.state) >= 0


def _read(config: dict[str, Any], name: str) -> Shape:
    text = inner(config)
    layers = layers_of(text)
    parameters = count(config, layers)
    return Shape(
        name=name.rpartition("/")[2],
        family=family_of(str(config.get("model_type"))) or family_of(str(text.get("model_type"))),
        parameters=parameters.total,
        active=parameters.active,
        embedding=parameters.embedding,
        experts=parameters.experts,
        expert_width=expert_width(text),
        expert_count=expert_count(text),
        experts_used=experts_used(text),
        layers=len(layers),
        hidden=text["hidden_size"],
        heads=text["num_attention_heads"],
        vocabulary=text["vocab_size"],
        kept=tuple(_kept(text, layers)),
        state=sum(_state(text, layer.mixer) for layer in layers),
        positions=text.get("max_position_embeddings"),
        vision=isinstance(config.get("vision_config"), dict),
        published=published(config),
        hub=name if "/" in name else None,
    )


def family_of(model_type: str) -> str | None:
    return next((family for start, family in _FAMILIES if model_type.startswith(start)), None)


# How the weights are stored


def published(config: dict[str, Any]) -> Precision:
    """What `quantization_config` says."""
    how = config.get("quantization_config") or inner(config).get("quantization_config") or {}
    if inner(config).get("expert_dtype") == "fp4":
        return "mxfp4"
    method = str(how.get("quant_method", "")).lower()
    direct: dict[str, Precision] = {
        "fp8": "fp8", "fbgemm_fp8": "fp8", "awq": "awq", "gptq": "gptq", "mxfp4": "mxfp4", "bitsandbytes": "bnb",
    }  # fmt: skip
    if method in direct:
        return direct[method]
    if method in ("modelopt", "modelopt_fp4"):
        return "fp8" if "FP8" in str(how.get("quant_algo", "")).upper() else "nvfp4"
    if method == "compressed-tensors":
        return _compressed(how)
    return "none"


def _compressed(how: dict[str, Any]) -> Precision:
    named: dict[str, Precision] = {"nvfp4-pack-quantized": "nvfp4", "mxfp4-pack-quantized": "mxfp4"}
    if (form := str(how.get("format"))) in named:
        return named[form]
    group: dict[str, Any] = next(iter((how.get("config_groups") or {}).values()), {})
    weights = group.get("weights") or {}
    if weights.get("num_bits") == 4:
        return "int4" if weights.get("group_size") == 32 else "gptq"
    return "fp8" if weights.get("type") == "float" else "int8"


# Layers


def layers_of(text: dict[str, Any]) -> list[Layer]:
    if pattern := text.get("hybrid_override_pattern"):  # Nemotron-H: attention and feed-forward are layers of their own
        feeds = {"E": "experts", "-": "dense"}
        return [Layer(_MIXERS.get(sign, "none"), feeds.get(sign, "none")) for sign in pattern]  # type: ignore[arg-type]
    if (words := text.get("layers_block_type")) and "moe" in words:
        feeds = {"moe": "experts", "mlp": "dense"}
        return [Layer(_MIXERS.get(word, "none"), feeds.get(word, "none")) for word in words]  # type: ignore[arg-type]
    number = int(text["num_hidden_layers"])
    if not 0 < number <= _MOST_LAYERS:
        raise ValueError
    return [Layer(mixer) for mixer in _mixers(text, number)]


def _mixers(text: dict[str, Any], number: int) -> list[Mixer]:
    if types := text.get("layer_types") or text.get("layers_block_type"):
        return [_MIXERS.get(each, "full") for each in types[:number]]
    if own := text.get("linear_attn_config"):
        return ["full" if layer + 1 in own["full_attn_layers"] else "linear" for layer in range(number)]
    if every := text.get("full_attention_interval"):
        return ["full" if (layer + 1) % every == 0 else "linear" for layer in range(number)]
    if isinstance(pattern := text.get("hybrid_layer_pattern"), list):  # MiMo: 1 is a window
        return ["sliding" if each else "full" for each in pattern[:number]]
    if (
        not 0 < (text.get("sliding_window") or 0) < text.get("max_position_embeddings", 2**31)
        or text.get("use_sliding_window") is False
        or text.get("compress_ratios")
    ):
        return ["full"] * number
    every = _pattern(text)
    return ["full" if every and (layer + 1) % every == 0 else "sliding" for layer in range(number)]


def _pattern(text: dict[str, Any]) -> int:
    """Of so many layers the last sees all tokens; 0: none does."""
    kind = str(text.get("model_type"))
    if isinstance(given := text.get("sliding_window_pattern"), int):
        return given
    if isinstance(given, str):  # EXAONE: LLLG
        return len(given)
    return 6 if kind.startswith("gemma3") else 2 if kind.startswith(("gemma2", "gpt_oss")) else 0


def _kept(text: dict[str, Any], layers: list[Layer]) -> list[Kept]:
    if ratios := text.get("compress_ratios"):
        return _compressed_kept(text, ratios[: len(layers)])
    # The last layers of Gemma's E models look into the cache of layers before them.
    own = layers[: len(layers) - (text.get("num_kv_shared_layers") or 0)]
    of_kind = {mixer: sum(layer.mixer == mixer for layer in own) for mixer in ("full", "sliding")}
    kept = []
    if of_kind["full"]:
        kept.append(_full(text, of_kind["full"]))
    if of_kind["sliding"]:
        heads = text.get("swa_num_key_value_heads") or text.get("num_key_value_heads") or text["num_attention_heads"]
        width = (text.get("swa_head_dim") or head_dim(text)) + (text.get("swa_v_head_dim") or _value_dim(text))
        kept.append(Kept(of_kind["sliding"], heads, width, int(text["sliding_window"])))
    return kept


def _value_dim(text: dict[str, Any]) -> int:
    return int(text.get("v_head_dim") or head_dim(text))


def _full(text: dict[str, Any], layers: int) -> Kept:
    if rank := text.get("kv_lora_rank"):
        # Where an indexer chooses what is attended to, it keeps one key of its own in FP8.
        return Kept(layers, 1, rank + text.get("qk_rope_head_dim", 64) + (text.get("index_head_dim") or 0) / 2)
    heads = text.get("num_key_value_heads") or text["num_attention_heads"]
    if size := text.get("global_head_dim"):
        return Kept(layers, text.get("num_global_key_value_heads") or heads, 2 * size)
    return Kept(layers, heads, head_dim(text) + _value_dim(text))


def _compressed_kept(text: dict[str, Any], ratios: list[int]) -> list[Kept]:
    """DeepSeek V4: each layer keeps a window whole, and of all else one latent for so many tokens."""
    size, index = head_dim(text), text.get("index_head_dim", 0) / 2
    kept = [Kept(len(ratios), 1, size, int(text["sliding_window"]))]
    for ratio, same in groupby(sorted(each for each in ratios if each)):
        # The finest of them is searched by an indexer.
        searched = index if ratio == min(each for each in ratios if each) else 0
        kept.append(Kept(len(list(same)), 1, (size + searched) / ratio))
    return kept


def _state(text: dict[str, Any], mixer: Mixer) -> float:
    """What a layer keeps of a request in place of its tokens, in elements of 16 bits; most keep it in 32."""
    if mixer == "mamba":
        return float(2 * text["mamba_num_heads"] * text["mamba_head_dim"] * text["ssm_state_size"])
    if mixer != "linear":
        return 0.0
    if own := text.get("linear_attn_config"):
        return float(2 * own["num_heads"] * own["head_dim"] ** 2)
    heads = text.get("linear_num_value_heads", 32)
    return float(2 * heads * text.get("linear_key_head_dim", 128) * text.get("linear_value_head_dim", 128))
