"""Whatever stands in the files of a model's folder, it loads or is refused in a sentence that says what is wrong."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.dtypes import weights_dtype
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import load_tokenizer
from tests.engine.test_models import GEMMA3_ROPE, LLAMA3, YARN
from tests.engine.tiny import make_tiny

VALUES: list[Any] = [
    None,
    [],
    [1],
    {},
    {"a": [2]},
    "text",
    True,
    False,
    0,
    -1,
    7,
    0.5,
    1e300,
    10**30,
    math.inf,
    math.nan,
]
FIELDS = {
    "llama": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64}, "quantization_config": None},
    "qwen3": {"rope_parameters": {**YARN, "beta_fast": 32.0, "mscale": 0.7, "mscale_all_dim": 0.4}, "head_dim": 32},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "gemma2": {"head_dim": 16, "sliding_window": 20},
    "gemma3_text": {"head_dim": 16, "sliding_window": 12, "rope_parameters": GEMMA3_ROPE},
}
OTHER_REASONS = re.compile(
    "is missing|for each of|head_dim|cannot be shared|the config asks for|no place for|has no tensor|transformers"
)
"""Where a changed number fits its field, and not the tensors or another field; or what is asked for is not ours."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: make_tiny(family, tmp_path_factory.mktemp(family), **given) for family, given in FIELDS.items()}
    sighted = tmp_path_factory.mktemp("qwen2_vl")
    shutil.copytree(made["qwen2"], sighted, dirs_exist_ok=True)
    config = read(sighted / "config.json")
    text = config | {"model_type": "qwen2_vl_text", "rope_parameters": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    (sighted / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "text_config": text}))
    return made | {"qwen2_vl": sighted}


def read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def places(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where something stands in a JSON object: all fields, at any depth."""
    if not isinstance(values, dict):
        return []
    return [each for name, value in values.items() for each in ((*path, name), *places(value, (*path, name)))]


def changed(values: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = place
    return values | {name: changed(values[name], tuple(rest), value) if rest else value}


def load(folder: Path) -> None:
    found = resolve(str(folder))
    weights_dtype(found)
    load_generation_config(found)
    model = load_model(found, kernels=TorchKernels(torch.float32))
    model.reach(min(16, model.config.max_positions))


def test_what_is_changed_loads_as_it_is(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        load(folder)


@pytest.mark.parametrize("family", [*FIELDS, "qwen2_vl"])
@settings(max_examples=120)
@given(data=st.data())
def test_a_config_of_wrong_types_is_refused_in_a_sentence(
    family: str, folders: dict[str, Path], data: st.DataObject
) -> None:
    folder = folders[family]
    right = (folder / "config.json").read_text()
    place = data.draw(st.sampled_from(places(json.loads(right))))
    value = data.draw(st.sampled_from(VALUES))
    (folder / "config.json").write_text(json.dumps(changed(json.loads(right), place, value)))
    try:
        load(folder)
    except LoadError as error:
        assert place[-1] in str(error) or OTHER_REASONS.search(str(error)), error
    finally:
        (folder / "config.json").write_text(right)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, "\udc80", "1" * 5000, '"a"'])
def test_a_file_that_is_no_object_of_json_is_named(
    name: str, text: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LoadError, match=re.escape(name)):
        load(tmp_path)


@pytest.mark.parametrize("name", [7, "a\0b"])
def test_a_shard_that_no_file_can_be_called_is_refused(name: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadError, match="weight_map must be an object, with the name of a file for each tensor"):
        load(tmp_path)


TOKENIZER = {
    "bos_token": None,
    "chat_template": "{{ messages }}",
    "model_max_length": 100,
    "add_bos_token": False,
    "added_tokens_decoder": {"258": {"content": "<|im_end|>", "special": True}},
    "extra_special_tokens": {},
    "tokenizer_class": "PreTrainedTokenizerFast",
    "padding_side": "left",
}


@settings(max_examples=100)
@given(place=st.sampled_from(places(TOKENIZER)), value=st.sampled_from(VALUES))
@example(("chat_template",), [1])
@example(("chat_template",), {"default": 5})
def test_a_tokenizer_config_of_wrong_types_is_refused_in_a_sentence(
    folders: dict[str, Path], place: tuple[str, ...], value: Any
) -> None:
    folder = folders["llama"]
    file = folder / "tokenizer_config.json"
    right = file.read_text()
    file.write_text(json.dumps(changed(read(file) | TOKENIZER, place, value)))
    try:
        tokenizer = load_tokenizer(resolve(str(folder)))
        assert tokenizer("text").input_ids
        templates = tokenizer.chat_template
        assert templates is None or all(isinstance(each, str) for each in [templates, *templates])
    except LoadError as error:
        assert str(folder) in str(error)
    finally:
        file.write_text(right)
