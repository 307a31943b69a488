"""The header of a GGUF file: its fields, and where each tensor lies (the layout is in ggml's `docs/gguf.md`).

Files come from anywhere, whole or cut off in a download, and nothing in one is believed before it is held against the
file's own size. Whatever is read takes bytes of the header, so neither the work nor the memory can be more than a
multiple of these. (The `gguf` package takes seconds to read a large vocabulary.)
"""

import math
import mmap
import struct
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

_LARGEST = 64 << 20
"""Bytes of a header: ten times that of 262,144 tokens."""
_MOST_DIMENSIONS = 4
"""Of a tensor, as in ggml."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    shape: tuple[int, ...]
    """[..., rows, columns], as numpy has it."""
    kind: GGMLQuantizationType
    offset: int
    """Bytes from the start of the file."""

    @property
    def row_size(self) -> int:
        """Bytes."""
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * block_bytes

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def end(self) -> int:
        """Bytes from the start of the file."""
        return self.offset + self.rows * self.row_size


def read_header(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """The fields, and the tensors by their names in the file. Raises ValueError with the reason."""
    return _Reader(data).read()


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensor_count, field_count = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and 2 and 3 are known")
        fields = {self._string(): self._value() for _ in range(field_count)}
        tensors = {self._string(): self._tensor() for _ in range(tensor_count)}
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its general.alignment is {str(alignment)[:80]!r}")
        start = -(-self._at // alignment) * alignment
        placed = {name: TensorInfo(shape, kind, start + offset) for name, (shape, kind, offset) in tensors.items()}
        self._check_places(placed)
        return fields, placed

    def _check_places(self, tensors: dict[str, TensorInfo]) -> None:
        """Each within the file, and no two in one place: of few bytes they would make much memory."""
        before = 0
        for name, tensor in sorted(tensors.items(), key=lambda each: each[1].offset):
            if tensor.offset < before:
                raise ValueError(f"its tensor {name[:80]!r} lies within another")
            if tensor.end > len(self._data):
                raise ValueError(f"it has {len(self._data)} bytes, and its tensor {name[:80]!r} ends at {tensor.end}")
            before = tensor.end

    def _tensor(self) -> tuple[tuple[int, ...], GGMLQuantizationType, int]:
        (dimensions,) = self._unpack("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = self._unpack(f"<{dimensions}Q")[::-1]  # GGUF names the fastest dimension first
        kind, offset = self._unpack("<IQ")
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not all(shape) or shape[-1] % block:
            raise ValueError(f"a tensor of the shape {list(shape)} in blocks of {block}")
        return shape, GGMLQuantizationType(kind), offset

    def _value(self) -> Any:
        (kind,) = self._unpack("<I")
        if kind == _ARRAY:
            kind, count = self._unpack("<IQ")
            if kind == _STRING:
                return [self._string() for _ in range(count)]
            return list(self._unpack(f"<{count}{_scalar(kind)}"))
        return self._string() if kind == _STRING else self._unpack(f"<{_scalar(kind)}")[0]

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        start = self._take(length)
        return self._data[start : self._at].decode()

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        """Raises struct.error for more than any file has."""
        return struct.unpack_from(layout, self._data, self._take(struct.calcsize(layout)))

    def _take(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        start = self._at
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it ends within its header")
        if self._at > _LARGEST:
            raise ValueError(f"its header has more than {_LARGEST >> 20} MiB")
        return start


def _scalar(kind: int) -> str:
    """The character that `struct` has for it."""
    if kind not in _SCALARS:
        raise ValueError(f"a value of the unknown type {kind}")
    return _SCALARS[kind]
