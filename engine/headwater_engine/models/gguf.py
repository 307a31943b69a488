"""GGUF files as if they were Hugging Face folders: the config, the tensors' names, their order and their values.

GGUF is the file format of llama.cpp (`gguf_header.py` reads it). Three things differ from a Hugging Face
folder: names; tensors in blocks of few bits with scales, which the `gguf` package expands; and in the architecture
`llama` the rows of the query and key projections, which are interleaved for a rotation of neighbouring dimensions,
where we rotate halves.
"""

import math
import mmap
import struct
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from headwater_engine.errors import LoadError
from headwater_engine.models.gguf_header import read_header

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
_MOST_FACTORS = 1024
"""No head has more pairs."""

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


class GGUFFile:
    """A .gguf file of one of the architectures that we run natively, mapped into memory.

    Its header is a second's work where the vocabulary is large: `ModelFolder.gguf` reads it once.
    """

    def __init__(self, path: Path) -> None:
        """Raises LoadError where the file is damaged, or is not for us."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.fields, tensors = read_header(self._data)
        except OSError as error:
            raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, struct.error) as error:
            raise LoadError(f"{path} is damaged or not a GGUF file: {error}.") from error
        self.architecture = str(self.fields.get("general.architecture"))[:80]
        if self.architecture not in _ARCHITECTURES:
            raise LoadError(
                f"{path} is of the GGUF architecture {self.architecture!r}; supported are {', '.join(_ARCHITECTURES)}. "
                "The Hugging Face folder of the model may work instead."
            )
        if self.fields.get("split.count", 0) not in (0, 1):
            raise LoadError(f"{path} is one of several parts: join them with llama.cpp's `gguf-split --merge` first.")
        self._tensors = {_hugging_face_name(name): info for name, info in tensors.items()}

    def config(self) -> dict[str, Any]:
        """The metadata as a config.json. Raises LoadError."""
        heads, hidden = self._count("attention.head_count"), self._count("embedding_length")
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
        stored = np.frombuffer(self._data, np.uint8, info.rows * info.row_size, info.offset)
        if info.kind is GGMLQuantizationType.F32:
            values = stored.view(np.float32)
        else:
            try:
                values = dequantize(stored.reshape(info.rows, info.row_size), info.kind)
            except NotImplementedError as error:
                raise LoadError(f"The tensor {name} is of the type {info.kind.name}, which is not read.") from error
        values = values.reshape(info.shape)
        if self.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = _halves_from_pairs(name, values, self._heads(of_queries=".q_proj." in name))
        return np.array(values, dtype=np.float32)  # a copy: torch wants memory that may be written

    def _heads(self, *, of_queries: bool) -> int:
        shared = not of_queries and self._own("attention.head_count_kv") is not None
        return self._count("attention.head_count_kv" if shared else "attention.head_count")

    def _ends(self) -> list[int]:
        """Tokens that end an answer: of a text, of a turn, of a message.

        Few files say all of them (a Llama 3 often has only the end of a text), so those count, too, that are written as
        such ends are.
        """
        said = [self.fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
        if not all(token is None or isinstance(token, int) for token in said):
            raise LoadError(f"The GGUF file's tokens that end an answer are {str(said)[:80]}, must be token ids.")
        tokens = zip(self._of_tokens("tokens"), self._of_tokens("token_type"), strict=False)
        written = (token for token, (text, kind) in enumerate(tokens) if kind == CONTROL and text in _ENDS)
        return list(dict.fromkeys(token for token in (*said, *written) if token is not None))

    def _rope(self) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_theta": self._own("rope.freq_base") or 10_000.0, "rope_type": "default"}
        kind, factor = self._own("rope.scaling.type"), self._own("rope.scaling.factor")
        if kind in ("linear", "yarn") and factor:
            rope |= {"rope_type": kind, "factor": factor}
        if original := self._own("rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = original
        if _ROPE_FACTORS in self._tensors:
            if math.prod(self._tensors[_ROPE_FACTORS].shape) > _MOST_FACTORS:
                raise LoadError(f"The GGUF file's {_ROPE_FACTORS} has more than {_MOST_FACTORS} numbers.")
            rope |= {"rope_type": "factors", "factors": self.tensor(_ROPE_FACTORS).tolist()}
        return rope

    def _dtype(self) -> str:
        """The type of most numbers, or what those in blocks are expanded to."""
        numbers: Counter[GGMLQuantizationType] = Counter()
        for info in self._tensors.values():
            numbers[info.kind] += math.prod(info.shape)
        (kind, _), *_ = numbers.most_common(1)
        return _TYPES.get(kind, "bfloat16")

    def _of_tokens(self, name: str) -> list[Any]:
        """What the file says of each token; empty where it says nothing."""
        value = self.fields.get(f"tokenizer.ggml.{name}")
        return value if isinstance(value, list) else []

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

    def _count(self, name: str) -> int:
        value = self._needed(name)
        if not isinstance(value, int) or value < 1:
            raise LoadError(
                f"The GGUF file's {self.architecture}.{name} is {str(value)[:80]!r}, must be a number from 1."
            )
        return value


def _hugging_face_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; an unknown name stays as it is."""
    stem, _, suffix = name.rpartition(".")
    if stem in _TENSORS:
        return f"{_TENSORS[stem]}.{suffix}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.{suffix}"
    return name


def _halves_from_pairs(name: str, values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of each head from (0, half, 1, half + 1, ...) back to (0, 1, ..., half, half + 1, ...)."""
    if len(values) % (2 * heads):
        raise LoadError(f"The tensor {name} has {len(values)} rows, which {heads} heads cannot share in pairs.")
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
