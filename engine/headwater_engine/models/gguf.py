"""GGUF files as if they were Hugging Face folders: the config, the tensors' names, their order and their values.

GGUF is the file format of llama.cpp (the layout is in ggml's `docs/gguf.md`). Three things differ from a Hugging Face
folder: names; tensors in blocks of few bits with scales, which the `gguf` package expands; and in the architecture
`llama` the rows of the query and key projections, which are interleaved for a rotation of neighbouring dimensions,
where we rotate halves.
"""

import math
import mmap
import struct
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from headwater_engine.errors import LoadError

_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's scaling of frequencies, as a divisor for each pair of dimensions."""

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens: special, and ordinary but never cut."""
_ENDS = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
    "<|call|>",
}
"""What ends an answer to llama.cpp, too, whatever the file says."""

_TYPES = {GGMLQuantizationType.F32: "float32", GGMLQuantizationType.F16: "float16"}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    shape: tuple[int, ...]
    """[..., rows, columns], as numpy has it."""
    kind: GGMLQuantizationType
    offset: int
    """Bytes from the start of the file."""


class GGUFFile:
    """A .gguf file of one of the architectures that we run natively, mapped into memory.

    Its header is a second's work where the vocabulary is large: `ModelFolder.gguf` reads it once.
    """

    def __init__(self, path: Path) -> None:
        """Raises LoadError where the file is damaged, or is not for us."""
        self.path = path
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.fields, tensors = _Header(self._data).read()
        except (ValueError, KeyError, IndexError, struct.error) as error:
            raise LoadError(f"{path} is damaged or not a GGUF file: {error}") from error
        self.architecture = str(self.fields.get("general.architecture"))
        if self.architecture not in _ARCHITECTURES:
            raise LoadError(
                f"{path} is of the GGUF architecture {self.architecture!r}; supported are {', '.join(_ARCHITECTURES)}. "
                "The Hugging Face folder of the model may work instead."
            )
        if self.fields.get("split.count", 0) > 1:
            raise LoadError(f"{path} is one of several parts: join them with llama.cpp's `gguf-split --merge` first.")
        self._tensors = {_hugging_face_name(name): info for name, info in tensors.items()}

    def config(self) -> dict[str, Any]:
        """The metadata as a config.json. Raises LoadError."""
        heads, hidden = self._needed("attention.head_count"), self._needed("embedding_length")
        if "model.embed_tokens.weight" not in self._tensors:
            raise LoadError("The GGUF file has no tensor token_embd.weight.")
        return {
            "model_type": self.architecture,
            "vocab_size": self._tensors["model.embed_tokens.weight"].shape[0],
            "hidden_size": hidden,
            "intermediate_size": self._needed("feed_forward_length"),
            "num_hidden_layers": self._needed("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._own("attention.head_count_kv") or heads,
            "head_dim": self._own("attention.key_length") or hidden // heads,
            "rms_norm_eps": self._needed("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self._needed("context_length"),
            "sliding_window": self._own("attention.sliding_window"),
            "rope_parameters": self._rope(),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._tensors,
            "dtype": self._dtype(),
            "bos_token_id": self.fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._ends(),
        }

    def tensor_names(self) -> Collection[str]:
        return self._tensors.keys() - {_ROPE_FACTORS}

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """The values, in Hugging Face's order. Raises LoadError where there is no such tensor."""
        if name not in self._tensors:
            raise LoadError(f"The checkpoint has no tensor {name}.")
        info = self._tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[info.kind]
        row_bytes = info.shape[-1] // block * block_bytes
        rows = int(np.prod(info.shape[:-1]))
        stored = np.frombuffer(self._data, np.uint8, rows * row_bytes, info.offset)
        if info.kind is GGMLQuantizationType.F32:
            values = stored.view(np.float32)
        else:
            values = dequantize(stored.reshape(rows, row_bytes), info.kind)
        values = values.reshape(info.shape)
        if self.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            key = "attention.head_count" if ".q_proj." in name else "attention.head_count_kv"
            values = _halves_from_pairs(values, self._own(key) or self._needed("attention.head_count"))
        return np.array(values, dtype=np.float32)  # a copy: torch wants memory that may be written

    def _ends(self) -> list[int]:
        """Tokens that end an answer: of a text, of a turn, of a message.

        Few files say all of them (a Llama 3 often has only the end of a text), so those count, too, that are written as
        such ends are.
        """
        said = (self.fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom"))
        types = self.fields.get("tokenizer.ggml.token_type", ())
        written = (
            token
            for token, (text, kind) in enumerate(zip(self.fields.get("tokenizer.ggml.tokens", ()), types, strict=False))
            if kind == CONTROL and text in _ENDS
        )
        return list(dict.fromkeys(token for token in (*said, *written) if token is not None))

    def _rope(self) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_theta": self._own("rope.freq_base") or 10_000.0, "rope_type": "default"}
        kind, factor = self._own("rope.scaling.type"), self._own("rope.scaling.factor")
        if kind in ("linear", "yarn") and factor:
            rope |= {"rope_type": kind, "factor": factor}
        if original := self._own("rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = original
        if _ROPE_FACTORS in self._tensors:
            rope |= {"rope_type": "factors", "factors": self.tensor(_ROPE_FACTORS).tolist()}
        return rope

    def _dtype(self) -> str:
        """The type of most numbers, or what those in blocks are expanded to."""
        numbers: Counter[GGMLQuantizationType] = Counter()
        for info in self._tensors.values():
            numbers[info.kind] += math.prod(info.shape)
        (kind, _), *_ = numbers.most_common(1)
        return _TYPES.get(kind, "bfloat16")

    def _own(self, name: str) -> Any:
        value = self.fields.get(f"{self.architecture}.{name}")
        if isinstance(value, list):
            raise LoadError(
                f"The GGUF file's {self.architecture}.{name} differs from layer to layer: that does not run."
            )
        return value

    def _needed(self, name: str) -> Any:
        value = self._own(name)
        if value is None:
            raise LoadError(f"The GGUF file has no field {self.architecture}.{name}.")
        return value


class _Header:
    """The part of the file before the tensors. (The `gguf` package takes seconds to read a large vocabulary.)"""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, _TensorInfo]]:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensor_count, field_count = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and 2 and 3 are known")
        fields = {self._string(): self._value(self._unpack("<I")[0]) for _ in range(field_count)}
        tensors = {self._string(): self._tensor() for _ in range(tensor_count)}
        alignment = fields.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        return fields, {
            name: _TensorInfo(shape, GGMLQuantizationType(kind), start + offset)
            for name, (shape, kind, offset) in tensors.items()
        }

    def _tensor(self) -> tuple[tuple[int, ...], int, int]:
        (dimensions,) = self._unpack("<I")
        shape = self._unpack(f"<{dimensions}Q")[::-1]  # GGUF names the fastest dimension first
        kind, offset = self._unpack("<IQ")
        return shape, kind, offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = self._unpack("<IQ")
            if item in _SCALARS:
                return list(self._unpack(f"<{count}{_SCALARS[item]}"))
            return [self._value(item) for _ in range(count)]
        return self._unpack(f"<{_SCALARS[kind]}")[0]

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        text = self._data[self._at : self._at + length].decode()
        self._at += length
        return text

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values


def _hugging_face_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; an unknown name stays as it is."""
    stem, _, suffix = name.rpartition(".")
    if stem in _TENSORS:
        return f"{_TENSORS[stem]}.{suffix}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.{suffix}"
    return name


def _halves_from_pairs(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of each head from (0, half, 1, half + 1, ...) back to (0, 1, ..., half, half + 1, ...)."""
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
