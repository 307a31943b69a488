"""Whatever stands in a GGUF file, it loads or is refused in a sentence, for work in the measure of its size."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models import gguf_header
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.gguf import GGUFFile
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import load_tokenizer

HIDDEN, HEADS, KV_HEADS, MLP = 32, 2, 1, 32
TOKENS = ["a", "b", "ab", "<|im_end|>"]
SHAPES = {
    "token_embd": (len(TOKENS), HIDDEN),
    "rope_freqs": (HIDDEN // HEADS // 2,),
    "blk.0.attn_norm": (HIDDEN,),
    "blk.0.attn_q": (HIDDEN, HIDDEN),
    "blk.0.attn_k": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "blk.0.attn_v": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HIDDEN),
    "blk.0.ffn_norm": (HIDDEN,),
    "blk.0.ffn_gate": (MLP, HIDDEN),
    "blk.0.ffn_up": (MLP, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, MLP),
    "output_norm": (HIDDEN,),
}
FIELDS: dict[str, Callable[[gguf.GGUFWriter], None]] = {
    "general.alignment": lambda to: None,
    "split.count": lambda to: None,
    "llama.attention.sliding_window": lambda to: None,
    "llama.block_count": lambda to: to.add_block_count(1),
    "llama.context_length": lambda to: to.add_context_length(64),
    "llama.embedding_length": lambda to: to.add_embedding_length(HIDDEN),
    "llama.feed_forward_length": lambda to: to.add_feed_forward_length(MLP),
    "llama.attention.head_count": lambda to: to.add_head_count(HEADS),
    "llama.attention.head_count_kv": lambda to: to.add_head_count_kv(KV_HEADS),
    "llama.attention.key_length": lambda to: to.add_key_length(HIDDEN // HEADS),
    "llama.attention.layer_norm_rms_epsilon": lambda to: to.add_layer_norm_rms_eps(1e-5),
    "llama.rope.freq_base": lambda to: to.add_rope_freq_base(10_000.0),
    "llama.rope.scaling.type": lambda to: to.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
    "llama.rope.scaling.factor": lambda to: to.add_rope_scaling_factor(2.0),
    "llama.rope.scaling.original_context_length": lambda to: None,
    "tokenizer.ggml.model": lambda to: to.add_tokenizer_model("gpt2"),
    "tokenizer.ggml.pre": lambda to: to.add_tokenizer_pre("llama-bpe"),
    "tokenizer.ggml.tokens": lambda to: to.add_token_list(TOKENS),
    "tokenizer.ggml.token_type": lambda to: to.add_token_types([1, 1, 1, 3]),
    "tokenizer.ggml.merges": lambda to: to.add_token_merges(["a b"]),
    "tokenizer.ggml.bos_token_id": lambda to: to.add_bos_token_id(3),
    "tokenizer.ggml.eos_token_id": lambda to: to.add_eos_token_id(3),
    "tokenizer.ggml.eot_token_id": lambda to: None,
    "tokenizer.ggml.add_bos_token": lambda to: to.add_add_bos_token(True),
    "tokenizer.chat_template": lambda to: to.add_chat_template("{{ messages }}"),
}
"""Those that we look at, and what a model of one layer says there."""
VALUES: list[tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]] = [
    *((number, gguf.GGUFValueType.UINT64, None) for number in (0, 1, 3, 7, 2**31, 2**64 - 1)),
    *((number, gguf.GGUFValueType.INT64, None) for number in (-1, -(2**63))),
    *((number, gguf.GGUFValueType.FLOAT64, None) for number in (0.0, 0.5, -1.0, 1e300, float("inf"), float("nan"))),
    *((text, gguf.GGUFValueType.STRING, None) for text in ("", "linear", "yarn", "llama", "x" * 500)),
    (True, gguf.GGUFValueType.BOOL, None),
    ([1, 2], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32),
    ([0.5, float("nan")], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32),
    (["a", ""], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING),
    (["a", "a", "a", "a"], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING),
]


def write(file: Path, instead: dict[str, tuple[Any, Any, Any]] | None = None, **shapes: tuple[int, ...]) -> bytes:
    """A GGUF file, with other values for some fields, and other shapes for some tensors."""
    writer = gguf.GGUFWriter(file, "llama")
    for name, add in FIELDS.items():
        if name in (instead or {}):
            value, kind, item = (instead or {})[name]
            writer.add_key_value(name, value, kind, item)
        else:
            add(writer)
    for name, shape in (SHAPES | shapes).items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


def load(file: Path) -> None:
    """All that the two processes do with the file before they are ready. Raises LoadError."""
    folder = resolve(str(file))
    load_tokenizer(folder)
    load_generation_config(folder)
    load_model(folder, kernels=TorchKernels(torch.float32))


def attempt(file: Path) -> str:
    """Load it, or say why not."""
    try:
        load(file)
    except LoadError as error:
        reason = str(error)
        assert len(reason) < 1000, "a sentence, and not the file"
        return reason
    return ""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "tiny.gguf"


@pytest.fixture(scope="module")
def whole(file: Path) -> bytes:
    return write(file)


def test_the_file_that_is_damaged_here_is_well(file: Path, whole: bytes) -> None:
    file.write_bytes(whole)
    load(file)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_any_type_is_used_or_refused_in_a_sentence(name: str, file: Path) -> None:
    outcomes = set()
    for value in VALUES:
        write(file, {name: value})
        outcomes.add(attempt(file))
    assert outcomes - {""} or name in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.token_type")


damages = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.sampled_from([b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", struct.pack("<Q", 1 << 40)])
        | st.binary(min_size=1, max_size=12),
    ),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(damages=damages, kept=st.none() | st.integers(0, 1 << 20))
@example(damages=[], kept=0)
@example(damages=[(8, b"\xff" * 8)], kept=None)  # tensors
@example(damages=[(16, b"\xff" * 8)], kept=None)  # fields
def test_a_damaged_file_is_refused_in_a_sentence_for_bounded_work(
    damages: list[tuple[int, bytes]], kept: int | None, file: Path, whole: bytes
) -> None:
    header = whole.index(np.ones(8, np.float32).tobytes())
    data = bytearray(whole)
    for at, bytes_there in damages:
        at %= header
        data[at : at + len(bytes_there)] = bytes_there
    file.write_bytes(data[: None if kept is None else kept % len(data)])
    with pytest.MonkeyPatch.context() as patch:
        reads = counted(patch)
        reason = attempt(file)
    assert len(reads) <= len(data)
    assert reason or kept is None, "it was cut off, and nobody noticed"


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that is read of headers from now on."""
    reads: list[int] = []
    take = gguf_header._Reader._take

    def counting(reader: gguf_header._Reader, size: int) -> int:
        reads.append(size)
        return take(reader, size)

    patch.setattr(gguf_header._Reader, "_take", counting)
    return reads


kinds = st.integers(0, 13)
counts = st.sampled_from([0, 1, 3, 1000, 2**31, 2**32, 2**63, 2**64 - 1])


@settings(max_examples=200, deadline=None)
@given(nesting=st.lists(st.tuples(kinds, counts), min_size=1, max_size=4), behind=st.binary(max_size=4000))
@example(nesting=[(9, 1)] * 1500, behind=b"")
@example(nesting=[(9, 2**64 - 1), (8, 2**64 - 1)], behind=b"\0" * 4000)
def test_an_array_takes_memory_in_the_measure_of_the_file(
    nesting: list[tuple[int, int]], behind: bytes, file: Path
) -> None:
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    data += b"".join(struct.pack("<IQ", kind, count) for kind, count in nesting) + behind
    file.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(LoadError):
            GGUFFile(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(data) + 200_000


def test_a_header_larger_than_any_models_is_not_read(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 65 << 20))
        stream.truncate(70 << 20)
    with pytest.raises(LoadError, match="its header has more than 64 MiB"):
        GGUFFile(file)


def test_tensors_in_one_place_are_refused(file: Path) -> None:
    """Of a small file they would make a large model."""
    whole = bytearray(write(file))
    name = b"blk.0.ffn_up.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8 + 4
    before = whole.index(b"blk.0.ffn_gate.weight") + len(b"blk.0.ffn_gate.weight") + 4 + 2 * 8 + 4
    whole[at : at + 8] = whole[before : before + 8]
    file.write_bytes(whole)
    with pytest.raises(LoadError, match=r"blk\.0\.ffn_\w+\.weight' lies within another"):
        load(file)


def test_a_download_that_was_cut_off_is_called_that(file: Path, whole: bytes) -> None:
    file.write_bytes(whole[:-100])
    with pytest.raises(
        LoadError, match=rf"it has {len(whole) - 100} bytes, and its tensor 'output_norm\.weight' ends at"
    ):
        load(file)


@pytest.mark.parametrize("kind", list(GGMLQuantizationType))
def test_a_tensor_of_any_type_is_read_or_refused(kind: GGMLQuantizationType, file: Path) -> None:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(file, "llama")
    stored = np.zeros((1, block_bytes), np.uint8)
    writer.add_tensor("x.weight", stored, raw_shape=stored.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        assert GGUFFile(file).tensor("x.weight").shape == (1, block)
    except LoadError as error:
        assert f"is of the type {kind.name}" in str(error)


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_of_another_shape_is_refused(name: str, file: Path) -> None:
    for shape in ((33,), (33, 32), (32, 33), (2, 2, 2), (1, 32, 32, 1)):
        if not (name == "token_embd" and shape == (33, 32)):  # rows for tokens to come
            write(file, **{name: shape})
            assert attempt(file)
