"""A model that is read from its files or described by flags, and a person who is asked."""

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import cli
from headwater.cli.parser import USAGE_ERROR
from headwater.pick.checkpoint import read_model
from headwater.pick.config import ConfigError, read_config
from headwater.pick.interactive import QUESTIONS, as_flags, ask
from headwater.pick.precision import bytes_of, precision_in
from headwater.pick.shape import CHUNK, Kept
from headwater.pick.workload import workload
from tests.headwater.fake_stores import Store

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
EXPERTS = LLAMA | {
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


def test_a_config_says_layers_heads_and_parameters() -> None:
    shape = read_config(LLAMA, "meta/x")
    assert shape.parameters == pytest.approx(8.03e9, rel=0.001)
    assert shape.kept == (Kept(32, 8, 256),)
    assert (shape.family, shape.positions, shape.estimated) == ("llama", 131072, False)


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"sliding_window": 1024, "sliding_window_pattern": 4}, (Kept(8, 8, 256), Kept(24, 8, 256, 1024))),
        ({"sliding_window": 4096, "use_sliding_window": False}, (Kept(32, 8, 256),)),
        ({"sliding_window": 262144}, (Kept(32, 8, 256),)),
        ({"full_attention_interval": 4}, (Kept(8, 8, 256),)),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, (Kept(32, 1, 576),)),
        ({"num_kv_shared_layers": 12}, (Kept(20, 8, 256),)),
        ({"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 128},
         (Kept(16, 8, 256), Kept(16, 8, 256, 128))),
    ],
)  # fmt: skip
def test_each_kind_of_layer_keeps_what_it_needs(more: dict[str, Any], kept: tuple[Kept, ...]) -> None:
    assert read_config(LLAMA | more, "x").kept == kept


def test_layers_with_linear_attention_keep_a_state_and_experts_are_counted() -> None:
    linear = read_config(LLAMA | {"full_attention_interval": 4}, "x")
    assert linear.state == 24 * 2 * 32 * 128 * 128
    experts = read_config(EXPERTS, "x")
    assert experts.experts == 32 * 128 * 3 * 4096 * 768
    assert experts.active < experts.parameters / 4


@pytest.mark.parametrize(
    ("quantization", "published"),
    [
        ({}, "none"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "bitsandbytes"}, "bnb"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"quant_method": "compressed-tensors",
          "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}}, "int8"),
    ],
)  # fmt: skip
def test_a_config_says_how_its_weights_are_stored(quantization: dict[str, Any], published: str) -> None:
    assert read_config(LLAMA | {"quantization_config": quantization}, "x").published == published


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("lab/m-8B-NVFP4", "nvfp4"), ("lab/m-8B-w4a16", "int4"), ("lab/m.w8a8", "int8"), ("lab/m-AWQ-INT4", "awq"),
        ("lab/m-GPTQ-Int4", "gptq"), ("lab/m-GGUF", "gguf"), ("lab/m-Q4_K_M.gguf", "gguf"), ("lab/m-bnb-4bit", "bnb"),
        ("lab/m-FP8-dynamic", "fp8"), ("amd/gpt-oss-120b-w-mxfp4-a-fp8", "mxfp4"), ("lab/m-BF16", "none"),
        ("lab/m", None),
    ],
)  # fmt: skip
def test_a_name_says_how_weights_are_stored(name: str, precision: str | None) -> None:
    assert precision_in(name) == precision


def test_a_gguf_has_the_bytes_of_its_type() -> None:
    assert bytes_of("gguf", "lab/m-Q8_0.gguf") == 8.5 / 8
    assert bytes_of("gguf", "lab/m-GGUF") == 0.606


FIELDS = [*LLAMA, "layer_types", "sliding_window", "num_experts", "quantization_config"]
VALUES = st.one_of(st.none(), st.integers(-2, 9), st.text(max_size=4), st.lists(st.integers(), max_size=2))


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_a_hostile_config_is_refused_in_one_sentence(wrong: dict[str, Any]) -> None:
    try:
        read_config(LLAMA | wrong, "x")
    except ConfigError as error:
        assert "\n" not in str(error)


# Files


def tensors(**sizes: int) -> bytes:
    header, at = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    return struct.pack("<Q", len(text)) + text


def test_the_headers_of_a_folder_say_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "a.safetensors").write_bytes(tensors(one=4 * 2**30))
    (tmp_path / "b.safetensors").write_bytes(tensors(two=5 * 2**30))
    assert read_model(str(tmp_path)).stored == 9 * 2**30
    assert read_model(str(tmp_path / "config.json")).stored is None
    assert cli.main(["pick", "--config", str(tmp_path), "--model", "lab/mine", "--json"]) == 0
    part = json.loads(capsys.readouterr().out)["parts"][0]
    assert part["weightsGiB"] == 9.0


def test_weights_that_are_there_in_two_forms_count_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for name in ("consolidated", "model-00001-of-00001"):
        (tmp_path / f"{name}.safetensors").write_bytes(tensors(one=2**30))
    assert read_model(str(tmp_path)).stored == 2**30


def test_an_index_says_them_where_the_files_are_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 1234}}')
    assert read_model(str(tmp_path)).stored == 1234


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "cannot be read"),
        ({"config.json": b"{"}, "is no JSON"),
        ({"config.json": b"[]"}, "is no JSON object"),
        ({"config.json": b"{}"}, "has no num_hidden_layers"),
        ({"config.json": json.dumps(LLAMA).encode(), "a.safetensors": b"\xff" * 9}, "is no safetensors file"),
        ({"config.json": json.dumps(LLAMA).encode(), "a.safetensors": b""}, "is no safetensors file"),
        ({"config.json": json.dumps(LLAMA | {"hidden_size": -4096}).encode()}, "has a size that is not above 0"),
        ({"config.json": json.dumps(LLAMA | {"num_hidden_layers": 0}).encode()}, "has a field of an unknown form"),
        ({"config.json": json.dumps(LLAMA | {"num_hidden_layers": 10**9}).encode()}, "has a field of an unknown form"),
    ],
)
def test_broken_files_are_told_in_one_sentence(
    files: dict[str, bytes], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert cli.main(["pick", "--config", str(tmp_path)]) == USAGE_ERROR
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("alone")
def test_a_repository_is_read_without_its_weights(the_hub: Store, capsys: pytest.CaptureFixture[str]) -> None:
    the_hub.files |= {
        "config.json": json.dumps(LLAMA).encode(),
        "model.safetensors.index.json": b'{"metadata": {"total_size": 16060522496}}',
    }
    assert cli.main(["pick", "--config", "hf://owner/model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workload"]["model"] == "hf://owner/model"
    assert (found["model"]["estimated"], found["parts"][0]["weightsGiB"]) == (False, 14.96)
    assert not the_hub.ranges("model.safetensors")
    assert cli.main(["pick", "--config", "hf://owner/none"]) == USAGE_ERROR
    assert "--config: hf://owner/none" in capsys.readouterr().err


@pytest.mark.usefixtures("alone", "waits")
def test_a_hub_that_is_not_there_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(["pick", "--config", "hf://owner/model"]) == USAGE_ERROR
    said = capsys.readouterr()
    assert said.out == "", "it would be taken for the answer"
    assert "--config: hf://owner/model cannot be reached" in said.err
    assert said.err.count("\n") == 1


# Flags


def test_flags_describe_a_model_that_has_no_file() -> None:
    work = workload({"params": "120b", "active": "6b", "layers": 40, "full_layers": 10, "window": 512, "kv_heads": 4,
                     "head_dim": 128})  # fmt: skip
    shape = work.shape
    assert shape
    assert shape.kept == (Kept(10, 4, 256), Kept(30, 4, 256, 512))
    assert shape.fixed_elements(1, 100_000) == 30 * 4 * 256 * (512 + CHUNK)
    assert (shape.active, shape.estimated) == (6e9, False)
    latent = workload({"params": "120b", "layers": 40, "latent": 320}).shape
    assert latent
    assert latent.kept == (Kept(40, 1, 320),)


# A person


def test_a_person_is_asked_what_no_flag_says_and_again_after_a_wrong_answer() -> None:
    answers = iter(["Qwen/Qwen3-8B", "h1000", "l4", "2", *[""] * 20])
    told: list[str] = []
    values = ask({"concurrency": "9"}, lambda question: next(answers), told.append)
    assert set(values) == {question.field for question in QUESTIONS}
    assert len(told) == 1
    assert told[0] == '--gpu: is not known; found "h1000"; did you mean h100?'
    assert workload(values).concurrency == 9
    assert as_flags({"gpu": "l4", "agentic": True, "mixed": False}) == "--gpu l4 --agentic"


def test_answers_that_end_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Qwen/Qwen3-8B\nl4\n"))
    assert cli.main(["pick", "--interactive"]) == USAGE_ERROR
    assert "the answers ended before the questions" in capsys.readouterr().err


def test_a_plot_shows_a_line_for_each_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plot.svg"
    assert cli.main(["pick", "--model", "Qwen/Qwen3-8B", "--gpu", "l4", "--plot", str(file)]) == 0
    drawn = file.read_text()
    assert drawn.startswith("<svg")
    assert drawn.count("<polyline") == capsys.readouterr().out.count("1 x 1") - 1
    assert cli.main(["pick", "--model", "8b", "--plot", str(tmp_path / "none" / "x.svg")]) == USAGE_ERROR
    assert cli.main(["pick", "--model", "8b", "--plot", str(tmp_path / "x.pdf")]) == USAGE_ERROR
    assert "--plot: must end with .svg or .png" in capsys.readouterr().err


def test_a_plot_is_a_png_where_its_name_says_so(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plot.PNG"
    assert cli.main(["pick", "--model", "Qwen/Qwen3-8B", "--gpu", "l4", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_png_without_what_draws_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["pick", "--model", "8b", "--plot", str(tmp_path / "x.png")]) == USAGE_ERROR
    assert "matplotlib is missing: " in capsys.readouterr().err
