"""Models that read images, too, answer text as transformers does, by their text part alone.

Tiny random ones are made and saved by transformers' own classes, and then written as others wrote them before.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.decoder import Decoder
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import byte_level_tokenizer
from tests.engine.tiny import paged_greedy

PROMPTS = [list(range(40, 90)), [7, 200, 31]]
NEW_TOKENS = 10
TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
SIGHT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
QWEN_SIGHT = {"depth": 1, "num_heads": 2, "embed_dim": 32, "hidden_size": 64, "intermediate_size": 32}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
TOKENS = {"image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}
IMAGE_OF_GEMMA = {"image_token_index": 300, "boi_token_index": 301, "eoi_token_index": 302}

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "mistral3": (
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "pixtral", "patch_size": 14, "head_dim": 16, **SIGHT},
        {"image_token_index": 300, "tie_word_embeddings": False},
    ),
    "qwen2_vl": ({"rope_parameters": MROPE}, QWEN_SIGHT, TOKENS),
    "qwen2_5_vl": (
        {"rope_parameters": MROPE},
        QWEN_SIGHT | {"out_hidden_size": 64, "hidden_size": 32, "fullatt_block_indexes": [0]},
        TOKENS | {"tie_word_embeddings": True},
    ),
    "qwen3_vl": (
        {"rope_parameters": MROPE | {"mrope_interleaved": True}},
        {"depth": 1, "num_heads": 2, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64}
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        TOKENS,
    ),
    "gemma3": (
        {
            "head_dim": 32,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {"model_type": "siglip_vision_model", "patch_size": 14, **SIGHT},
        IMAGE_OF_GEMMA | {"mm_tokens_per_image": 4, "tie_word_embeddings": False},
    ),
}
"""By `model_type`: what its text part, what its eyes, and what the whole has beside."""


def make(kind: str, folder: Path) -> list[list[int]]:
    """Write a tiny random one to `folder`. Returns what transformers answers to PROMPTS."""
    text, sight, whole = MODELS[kind]
    config = transformers.AutoConfig.for_model(kind, text_config=TEXT | text, vision_config=sight, **whole)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.15, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0)
    model.save_pretrained(folder)
    byte_level_tokenizer(320).save_pretrained(folder)
    model.generation_config = transformers.GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False)
    answers = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        answers.append(model.generate(tokens, attention_mask=torch.ones_like(tokens))[0, len(prompt) :].tolist())
    return answers


def answers_of(folder: Path) -> list[list[int]]:
    kernels = TorchKernels(torch.float32)
    model = load_model(resolve(str(folder)), kernels=kernels)
    assert isinstance(model, Decoder)
    return paged_greedy(model, kernels, PROMPTS, NEW_TOKENS, 7)


def rename(folder: Path, pattern: str, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {re.sub(pattern, name, at): tensor for at, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def rewrite_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", MODELS)
def test_text_is_answered_as_by_the_whole_model(kind: str, tmp_path: Path) -> None:
    expected = make(kind, tmp_path)
    assert len({token for answer in expected for token in answer}) > 5, "a model that repeats itself shows nothing"
    assert answers_of(tmp_path) == expected
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert load_generation_config(resolve(str(tmp_path)))["eos_token_id"] == [258]


@pytest.mark.parametrize("kind", ["mistral3", "gemma3"])
def test_tensors_may_have_the_names_that_transformers_4_gave_them(kind: str, tmp_path: Path) -> None:
    expected = make(kind, tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    if not any(name.startswith("language_model.model.") for name in names):  # some are saved under them still
        rename(tmp_path, r"^model\.language_model\.", "language_model.model.")
        if kind == "mistral3":
            rename(tmp_path, r"^lm_head\.", "language_model.lm_head.")
    else:
        rename(tmp_path, r"^language_model\.model\.", "model.language_model.")
    assert answers_of(tmp_path) == expected


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_fields_and_tensors_of_the_text_part_may_stand_where_qwen_put_them(kind: str, tmp_path: Path) -> None:
    """On one level, the eyes beside the text, and a rotation of type `mrope`."""
    expected = make(kind, tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    if any(name.startswith("model.language_model.") for name in names):
        rename(tmp_path, r"^model\.(language_model\.)?", "model.")
        rename(tmp_path, r"^model\.visual\.", "visual.")
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = text | config | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    rewrite_config(tmp_path, flat)
    assert answers_of(tmp_path) == expected


def test_what_published_gemmas_leave_unsaid_is_known(tmp_path: Path) -> None:
    make("gemma3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("vocab_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
        del config["text_config"][name]
    rewrite_config(tmp_path, config)
    with pytest.raises(LoadError, match=r"has shape \[320, 64\]; the config asks for \[262208, 64\]"):
        answers_of(tmp_path)


def test_a_text_part_of_another_family_is_not_taken_for_ours(tmp_path: Path) -> None:
    make("mistral3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rewrite_config(tmp_path, config | {"text_config": config["text_config"] | {"model_type": "ministral3"}})
    with pytest.raises(LoadError):
        answers_of(tmp_path)
    rewrite_config(tmp_path, config | {"text_config": 3})
    with pytest.raises(LoadError, match="text_config is 3, must be an object"):
        answers_of(tmp_path)
