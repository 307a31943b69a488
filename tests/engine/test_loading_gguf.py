"""A GGUF file gives the same model as the Hugging Face folder that it was made from."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
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


def load(source: Path) -> Model:
    return load_model(resolve(str(source)), kernels=TorchKernels(torch.float32))


def greedy(model: Model) -> list[int]:
    return paged_greedy(model, TorchKernels(torch.float32), [PROMPT], 12)[0]


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
    assert greedy(load(file)) == reference_greedy(folder, [PROMPT], 12)[0]


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_a_gguf_file_of_narrower_types_is_expanded(name: str, tiny: Path, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    model, exact = load(write_gguf(tiny, tmp_path / "narrow.gguf", kind)), load(tiny)
    assert resolve(str(tmp_path / "narrow.gguf")).gguf.config()["dtype"] == ("float16" if name == "F16" else "bfloat16")
    hidden = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.logits(hidden), exact.logits(hidden), rtol=0, atol=0.4 if name == "Q4_1" else 0.1)


def test_gguf_files_that_are_not_for_us_are_refused(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"nonsense" * 10)
    with pytest.raises(LoadError, match="does not begin with GGUF"):
        load(file)
    writer = gguf.GGUFWriter(file, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(LoadError, match="architecture 'rwkv7'; supported are llama"):
        load(file)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_head_count([4, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(LoadError, match=r"llama\.attention\.head_count differs from layer to layer"):
        load(file)
    whole = write_gguf(tiny, tmp_path / "whole.gguf").read_bytes()
    file.write_bytes(whole[:200])
    with pytest.raises(LoadError, match="is damaged"):
        load(file)


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
