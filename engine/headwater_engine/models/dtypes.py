"""In which type a model's weights are held."""

from typing import Final

import torch

from headwater_engine.errors import LoadError
from headwater_engine.kernels import CPU, multiplies_bfloat16
from headwater_engine.models.checkpoint import SafetensorsCheckpoint
from headwater_engine.models.config import RawConfig
from headwater_engine.models.source import ModelFolder, WeightsKind, is_text_part, read_config

_TYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OUTGROW_FLOAT16: Final = {"gemma2", "gemma3", "gemma3_text", "glm4", "plamo2"}
"""Models whose activations get larger than 65,504, float16's largest number; to vLLM, too."""


def weights_dtype(folder: ModelFolder, choice: str = "auto", device: torch.device = CPU) -> torch.dtype:
    """The type to hold weights in on `device`: `choice`, or with "auto" the one that the checkpoint is of.

    That is what config.json says, else the type of most of its numbers. Quantised GGUF files are expanded to bfloat16,
    which takes less from them than their blocks did. No kernel for CPUs holds float16: where products are of bfloat16
    their rounding hides that of the weights, and they become bfloat16; elsewhere they become float32, which keeps them
    to the last bit. Raises LoadError.
    """
    config = read_config(folder)
    name = choice
    if choice == "auto":
        raw = RawConfig(config)
        name = (raw.text("dtype") or raw.text("torch_dtype") or _most_numbers(folder)).removeprefix("torch.")
    if name not in _TYPES:
        raise LoadError(f"The weights' dtype is {name!r}; allowed are {', '.join(_TYPES)}.")
    dtype = _TYPES[name]
    if dtype != torch.float16:
        return dtype
    on_gpu, fits = device.type == "cuda", config["model_type"] not in _OUTGROW_FLOAT16
    if on_gpu and fits:
        return torch.float16
    if choice == "float16":
        reason = (
            f"{config['model_type']} computes numbers beyond its range" if on_gpu else "no kernel for CPUs holds it"
        )
        raise LoadError(
            f"--dtype float16: {reason}. float32 keeps the weights as they are, bfloat16 takes as little room."
        )
    return torch.bfloat16 if on_gpu or multiplies_bfloat16() else torch.float32


def _most_numbers(folder: ModelFolder) -> str:
    """The type of most numbers in the checkpoint; bfloat16 where weights are made up."""
    if folder.kind is not WeightsKind.SAFETENSORS:
        return "bfloat16"
    assert folder.path is not None
    counts = SafetensorsCheckpoint(folder.path, text_part=is_text_part(folder)).numbers_by_type()
    return max(counts, key=lambda name: counts[name], default="bfloat16")
