"""The text part of models that read images, too, where it is a family of ours: it runs alone, on text.

Without an image the three position axes of Qwen's vision models are one, and attention is causal everywhere, so that
the text part is the family that it was made from. What is to be known is where its fields stand in config.json, and how
its tensors are called: those who saved such models put them in different places over the years.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from headwater_engine.errors import LoadError

_FAMILIES: Final = {
    "mistral3": {"mistral": "mistral"},
    "qwen2_vl": {"qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2"},
    "qwen2_5_vl": {"qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2"},
    "qwen3_vl": {"qwen3_vl_text": "qwen3"},
    "gemma3": {"gemma3_text": "gemma3_text"},
}
"""By `model_type` of the whole, and of its text part: the family of ours."""
_UNSAID: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma3": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    }
}
"""What the published files leave to transformers' defaults."""
_WHOLE: Final = ("dtype", "torch_dtype", "eos_token_id", "bos_token_id", "quantization_config")
"""Fields that count for the text part where they stand beside it."""
_PREFIXES: Final = ("model.language_model.", "language_model.model.", "model.")
"""Of the text part's tensors: transformers 5, 4, and Qwen's own."""
_HEADS: Final = ("lm_head.weight", "language_model.lm_head.weight")


def text_part(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the text part as if it were a model by itself. None: it has none that we run. Raises LoadError."""
    families = _FAMILIES.get(config["model_type"])
    if families is None:
        return None
    text = config.get("text_config", config)  # Qwen's first ones have one level only
    if not isinstance(text, dict):
        raise LoadError(f"config.json: text_config is {text!r}, must be an object.")
    family = families.get(str(text.get("model_type", next(iter(families)))))
    if family is None:
        return None
    part = {**_UNSAID.get(config["model_type"], {}), **text, "model_type": family}
    part |= {name: config[name] for name in _WHOLE if config.get(name) is not None}
    if ties := [values["tie_word_embeddings"] for values in (config, text) if "tie_word_embeddings" in values]:
        part["tie_word_embeddings"] = next((tied for tied in ties if tied), ties[0])
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := part.get(name), dict) and "mrope" in (rope.get("type"), rope.get("rope_type")):
            part[name] = {**rope, "rope_type": "default"}
    return part


def text_tensors(names: Collection[str]) -> dict[str, str]:
    """The tensors of the text part: what they would be called if it were a model by itself, and their names."""
    prefix = next((each for each in _PREFIXES if any(name.startswith(each) for name in names)), "")
    found = {f"model.{name.removeprefix(prefix)}": name for name in names if name.startswith(prefix)}
    if head := next((name for name in _HEADS if name in names), None):
        found["lm_head.weight"] = head
    return found
