"""A model read from its files: config.json, and what the headers of its safetensors say of sizes."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from headwater.pick.config import ConfigError, read_config
from headwater.pick.shape import Shape

_LONGEST_HEADER: Final = 100_000_000
"""Bytes, as the format allows."""


def read_model(path: Path) -> Shape:
    """The model of a folder, or of a config.json alone. Raises ConfigError."""
    config = path / "config.json" if path.is_dir() else path
    folder = config.resolve().parent
    shape = read_config(_json(config), folder.name)
    stored = stored_bytes(folder) if path.is_dir() else None
    return replace(shape, stored=stored, source=str(path))


def stored_bytes(folder: Path) -> float | None:
    """Bytes of all tensors in a folder; None: it holds none."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return float(sum(size for file in files for size in _tensor_bytes(file)))
    if (index := folder / "model.safetensors.index.json").exists():
        total = (_json(index).get("metadata") or {}).get("total_size")
        return float(total) if isinstance(total, int | float) and total > 0 else None
    return None


def _tensor_bytes(file: Path) -> Iterator[int]:
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _LONGEST_HEADER:
                raise ConfigError(f"{file}: is no safetensors file")
            header = json.loads(opened.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                yield end - begin
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file}: is no safetensors file") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{file}: is no JSON") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: is no JSON object")
    return data
