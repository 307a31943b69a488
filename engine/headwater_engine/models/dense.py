"""Products that sentence-transformers puts behind pooling (`2_Dense`): what their folders say of them.

Light on purpose (no torch), as pooling.py is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from headwater_engine.errors import LoadError
from headwater_engine.models.source import read_object


class Activation(StrEnum):
    """What a product's outputs go through, by the name of torch's module."""

    IDENTITY = "torch.nn.modules.linear.Identity"
    TANH = "torch.nn.modules.activation.Tanh"
    RELU = "torch.nn.modules.activation.ReLU"
    GELU = "torch.nn.modules.activation.GELU"


_VECTOR: Final = "sentence_embedding"
"""What sentence-transformers calls the vector of a text."""


@dataclass(frozen=True, slots=True)
class Dense:
    """Its weights are in a file of its own."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: Activation


def read_dense(folder: Path) -> Dense:
    """Raises LoadError."""
    file = folder / "config.json"
    values = read_object(file)
    inputs, outputs = _size(file, values, "in_features"), _size(file, values, "out_features")
    activation = values.get("activation_function", Activation.TANH)
    if activation not in list(Activation):
        allowed = ", ".join(each.rpartition(".")[2] for each in Activation)
        raise LoadError(f"{file}: activation_function is {activation!r}; done here is one of {allowed}.")
    ends = {values.get(name) or _VECTOR for name in ("module_input_name", "module_output_name")}
    if ends != {_VECTOR} or values.get("use_residual"):
        raise LoadError(f"{file}: only products of a text's vector, in whose place they put another, are done here.")
    if not (folder / "model.safetensors").is_file():
        raise LoadError(f"{folder} has no model.safetensors; other formats of weights are not read.")
    return Dense(folder, inputs, outputs, values.get("bias") is not False, Activation(activation))


def _size(file: Path, values: Mapping[str, Any], name: str) -> int:
    size = values.get(name)
    if type(size) is not int or size < 1:
        raise LoadError(f"{file}: {name} must be a whole number above 0, found {size!r}.")
    return size
