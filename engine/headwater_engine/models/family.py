"""What a family of models is: everything that a `model_type` needs beside the shared layers and the shared decoder."""

from collections.abc import Callable
from dataclasses import dataclass

from headwater_engine.layers.linears import Linears
from headwater_engine.models.config import RawConfig
from headwater_engine.models.decoder import Decoder, Progress


@dataclass(frozen=True, slots=True)
class Family:
    """`FAMILY` of a file in `models/families/`, whose name is the `model_type`."""

    build: Callable[[RawConfig, Linears, Progress], Decoder]
    """Reads a config.json, and takes the weights that it speaks of. Raises LoadError."""
    activation: str = "silu"
    """The one that it computes; checkpoints with another one run through transformers."""
