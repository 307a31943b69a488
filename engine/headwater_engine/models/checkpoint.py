"""Checkpoints: safetensors files, one or many, and weights that are made up."""

import math
import zlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from headwater_engine.errors import LoadError
from headwater_engine.layers.weights import Checkpoint
from headwater_engine.models.gguf import GGUFFile
from headwater_engine.models.source import ModelFolder, WeightsKind, is_text_part, safetensors_files
from headwater_engine.models.text_part import text_tensors
from headwater_engine.quantization.stored import StoredWeight

_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_checkpoint(folder: ModelFolder) -> Checkpoint:
    """The weights of `folder`. Raises LoadError."""
    match folder.kind:
        case WeightsKind.RANDOM:
            return RandomCheckpoint()
        case WeightsKind.GGUF:
            return GGUFCheckpoint(folder.gguf)
        case WeightsKind.SAFETENSORS:
            assert folder.path is not None
            return SafetensorsCheckpoint(folder.path, text_part=is_text_part(folder))


class SafetensorsCheckpoint:
    """A folder with model.safetensors, or with shards and their index. Files are mapped, not read."""

    def __init__(self, folder: Path, *, text_part: bool = False) -> None:
        """`text_part`: only the tensors of that part are there, by the names that they would have by themselves."""
        self._files: dict[str, Any] = {}
        for path in safetensors_files(folder):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise LoadError(f"{path} is damaged or not a safetensors file: {error}") from error
            self._files.update(dict.fromkeys(file.keys(), file))
        stored = text_tensors(self._files) if text_part else {name: name for name in self._files}
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        self._stored = {name: at for name, at in stored.items() if not name.endswith("rotary_emb.inv_freq")}
        """By the name that it is asked for: what a tensor is called in the files."""

    def names(self) -> Collection[str]:
        return self._stored.keys()

    def numbers_by_type(self) -> Counter[str]:
        """How many numbers there are of each type: "bfloat16", ..., or what safetensors calls it."""
        counts: Counter[str] = Counter()
        for name in self._stored.values():
            tensor = self._files[name].get_slice(name)
            kind = tensor.get_dtype()
            counts[_TYPES.get(kind, kind)] += math.prod(tensor.get_shape())
        return counts

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        if name not in self._stored:
            raise LoadError(f"The checkpoint has no tensor {name}.")
        stored = self._stored[name]
        return StoredWeight(self._files[stored].get_tensor(stored))


class GGUFCheckpoint:
    """A .gguf file, under the names that transformers gives the tensors. Quantised tensors are expanded to float32."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def names(self) -> Collection[str]:
        return self._file.tensor_names()

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        return StoredWeight(torch.from_numpy(self._file.tensor(name)))


class RandomCheckpoint:
    """Normal weights with a standard deviation of 0.02, norms of one, biases of zero: the same on each call."""

    def names(self) -> Collection[str]:
        return ()

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        if name.endswith("bias"):
            return StoredWeight(torch.zeros(shape))
        if "norm" in name.lower():
            return StoredWeight(torch.ones(shape))
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return StoredWeight(torch.empty(shape).normal_(std=0.02, generator=generator))
