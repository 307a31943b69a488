"""Where layers get their parameters: by name, one tensor at a time, checked against the shape that the layer needs.

Layers pull. So a checkpoint is never in memory as a whole beside the model: a tensor is read, joined with those that it
is fused with, handed to the kernels, and dropped.
"""

from collections.abc import Collection
from typing import Protocol

import torch

from headwater_engine.errors import LoadError
from headwater_engine.quantization.stored import StoredWeight


class Checkpoint(Protocol):
    """Named tensors in a file, or made up."""

    def names(self) -> Collection[str]:
        """All tensors that the model must use. Empty where the checkpoint makes up whatever it is asked for."""

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """The tensor, in whatever type and shape it is stored. `shape` is what the reader expects.

        Raises LoadError where there is no such tensor.
        """


class Weights:
    """The tensors of a checkpoint below one prefix."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.dtype = dtype
        """What weights are to be held in, where they are held as plain numbers."""
        self._checkpoint = checkpoint
        self._prefix = ""
        self._taken: set[str] = set()

    def scope(self, name: str) -> "Weights":
        """The weights below `name`: `scope("mlp").take("up_proj.weight", ...)` takes `mlp.up_proj.weight`."""
        scoped = Weights(self._checkpoint, self.dtype)
        scoped._prefix = f"{self._prefix}{name}."
        scoped._taken = self._taken
        return scoped

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds such a tensor; one that makes up its tensors holds none."""
        return self._prefix + name in self._checkpoint.names()

    def take(self, name: str, *shape: int) -> StoredWeight:
        """The tensor `name` of `shape` as it is stored. Raises LoadError where it is missing or has another shape."""
        full_name = self._prefix + name
        stored = self._checkpoint.read(full_name, shape)
        if stored.shape != shape:
            raise LoadError(
                f"The tensor {full_name} has shape {list(stored.shape)}; the config asks for {list(shape)}."
            )
        self._taken.add(full_name)
        return stored

    def finish(self) -> None:
        """Raises LoadError where the checkpoint holds tensors that no layer took: then it is another architecture."""
        extra = sorted(set(self._checkpoint.names()) - self._taken)
        if extra:
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            raise LoadError(
                f"The checkpoint has tensors that the model has no place for: {', '.join(extra[:3])}{more}."
            )
