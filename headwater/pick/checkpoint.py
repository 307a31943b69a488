"""A model read from its files: config.json, and what the headers of its safetensors say of sizes."""

import json
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from headwater.pick.config import ConfigError, read_config
from headwater.pick.shape import Shape

_INDEX: Final = "model.safetensors.index.json"

_LONGEST_HEADER: Final = 100_000_000
"""Bytes, as the format allows."""


def read_model(place: str) -> Shape:
    """The model of a folder, of a config.json alone, or of a source such as hf://OWNER/NAME. Raises ConfigError."""
    if "://" in place and not place.startswith("file://"):
        return _of_source(place)
    path = Path(place.removeprefix("file://"))
    config = path / "config.json" if path.is_dir() else path
    return replace(_of_files(config, config.resolve().parent.name, whole=path.is_dir()), source=place)


def _of_source(source: str) -> Shape:
    """Fetches what describes the model, and no weights."""
    # Here, since it takes as long to import as all the rest of pick.
    from headwater.fetch import fetch
    from headwater.fetch.choice import Wish
    from headwater.fetch.errors import FetchError

    name = source.partition("://")[2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        try:
            fetch(source, folder, wish=Wish(include=("config.json", _INDEX)))
        except FetchError as error:
            raise ConfigError(str(error)) from None
        return replace(_of_files(folder / "config.json", name, whole=True), source=source)


def _of_files(config: Path, name: str, *, whole: bool) -> Shape:
    """`whole`: whether what lies beside the config is the model's, too."""
    return replace(read_config(_json(config), name), stored=stored_bytes(config.parent) if whole else None)


def stored_bytes(folder: Path) -> float | None:
    """Bytes of all tensors in a folder; None: it holds none."""
    # Mistral's repositories hold all weights twice, in its own form and in that of transformers.
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if files:
        return float(sum(size for file in files for size in _tensor_bytes(file)))
    if (index := folder / _INDEX).exists():
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
