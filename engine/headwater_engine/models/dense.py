"""Products that sentence-transformers puts behind pooling (`2_Dense`): what their folders say of them.

Light on purpose (no torch), as pooling.py is.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

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
    sizes = [values.get(name) for name in ("in_features", "out_features")]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise LoadError(f"{file}: in_features and out_features must be whole numbers above 0, found {sizes}.")
    activation = values.get("activation_function", Activation.TANH)
    if activation not in list(Activation):
        allowed = ", ".join(each.rpartition(".")[2] for each in Activation)
        raise LoadError(f"{file}: activation_function is {activation!r}; done here is one of {allowed}.")
    ends = {values.get(name) or _VECTOR for name in ("module_input_name", "module_output_name")}
    if ends != {_VECTOR} or values.get("use_residual"):
        raise LoadError(f"{file}: only products of a text's vector, in whose place they put another, are done here.")
    if not (folder / "model.safetensors").is_file():
        raise LoadError(f"{folder} has no model.safetensors; other formats of weights are not read.")
    return Dense(folder, *sizes, bias=values.get("bias") is not False, activation=Activation(activation))
