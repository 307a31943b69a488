"""Which files of a model are worth fetching: repositories hold the same weights in many formats."""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Final

_NEVER: Final = (".git*", "*/.git*", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.mlpackage/*", "*.onnx", "*.onnx_data*")
"""Formats that no server reads here."""
_AS_TRAINED: Final = ("original/*", "consolidated*", "*.pth", "*.pt", "*.ckpt")
"""The same weights again, as their makers trained them."""
_PICKLED: Final = ("*.bin",)


def choose(names: Sequence[str]) -> list[str]:
    """Safetensors before pickles, and these before everything else; all that is not weights."""
    left = [name for name in names if not _matches(name, _NEVER)]
    plain = [name for name in left if not _matches(name, _AS_TRAINED)]
    if any(name.endswith(".safetensors") for name in plain):
        return [name for name in plain if not _matches(name, _PICKLED)]
    if any(name.endswith((".bin", ".gguf")) for name in plain):
        return plain
    return left


def below(names: Sequence[str], path: str) -> dict[str, str]:
    """Of the names those that are `path` or in it, and what each is called from there on."""
    if not path:
        return {name: name for name in names}
    if path in names:
        return {path: path.rpartition("/")[2]}
    return {name: name.removeprefix(f"{path}/") for name in names if name.startswith(f"{path}/")}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
