"""Rotary position embedding (Su et al., 2021) as tables of cosines and sines, with the scalings that stretch a context.

A row depends on its position alone, so that a cached key stays right whatever its sequence grows into. All types allow
that but `dynamic`, which recomputes its frequencies from the length of the sequence. There, row p holds the frequencies
of a sequence of p + 1 tokens: what transformers computes where a sequence grows token by token. Only a prompt that is
itself longer than the trained context comes out differently.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwater_engine.kernels.interface import RotaryTable

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "factors")
"""As in transformers, and `factors`: a divisor for each pair of dimensions, as GGUF files carry Llama 3's scaling."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn into angles."""

    type: str
    """One of ROPE_TYPES."""
    dim: int
    """Dimensions of a head that are rotated."""
    theta: float
    trained_positions: int
    """`max_position_embeddings` of the model's config."""
    parameters: Mapping[str, Any]
    """What the type needs beside: factor, ..., named as in transformers' `rope_parameters`."""

    @property
    def max_positions(self) -> int:
        """Positions that the scaling reaches."""
        factor = self.parameters.get("factor") or 1.0
        match self.type:
            case "linear" | "dynamic":
                return int(self.trained_positions * factor)
            case "yarn":
                original = self.parameters.get("original_max_position_embeddings") or self.trained_positions
                return max(self.trained_positions, int(original * factor))
            case _:
                return self.trained_positions


class Rope:
    """The angles of a model's positions, of as many as sequences get to."""

    def __init__(self, config: RopeConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self.table = RotaryTable(torch.empty(0, device=device), torch.empty(0, device=device))
        """Of no position until `reach`. A model's layers share it."""

    def reach(self, positions: int) -> None:
        """Have so many positions in the table. A model may have been trained for many more than anyone asks for."""
        if positions > len(self.table.cos):
            cos, sin = angles(self._config, positions)
            self.table.cos, self.table.sin = cos.to(self._device), sin.to(self._device)


def angles(config: RopeConfig, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `count` positions, computed on the CPU; raises ValueError for an unknown type."""
    positions = torch.arange(count, dtype=torch.float32)
    attention_factor = 1.0
    match config.type:
        case "default":
            frequencies = _frequencies(config.theta, config.dim)
        case "linear":
            frequencies = _frequencies(config.theta, config.dim) / config.parameters["factor"]
        case "dynamic":
            frequencies = _dynamic(config, positions)
        case "yarn":
            frequencies, attention_factor = _yarn(config)
        case "llama3":
            frequencies = _llama3(config)
        case "factors":
            frequencies = _frequencies(config.theta, config.dim) / torch.tensor(config.parameters["factors"])
        case unknown:
            raise ValueError(f"rope_type: found {unknown!r}, allowed are {', '.join(ROPE_TYPES)}")
    turned = positions.unsqueeze(1) * frequencies
    return turned.cos() * attention_factor, turned.sin() * attention_factor


def _frequencies(theta: float, dim: int) -> Tensor:
    """[dim // 2]: radians by which each pair turns from one position to the next."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _dynamic(config: RopeConfig, positions: Tensor) -> Tensor:
    """[positions, dim // 2]: NTK-aware scaling of the base, stronger the longer the sequence is."""
    factor, dim = config.parameters["factor"], config.dim
    lengths = (positions.double() + 1).clamp(min=config.trained_positions)
    growth = factor * lengths / config.trained_positions - (factor - 1)
    theta = (config.theta * growth ** (dim / (dim - 2))).float().unsqueeze(1)
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _yarn(config: RopeConfig) -> tuple[Tensor, float]:
    """YaRN (Peng et al., 2023): fast pairs stay, slow ones are interpolated, and attention is sharpened by a factor."""
    parameters, dim = config.parameters, config.dim
    original = parameters.get("original_max_position_embeddings") or config.trained_positions
    factor = parameters.get("factor") or config.trained_positions / original

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(config.theta))

    low = pair_that_turns(parameters.get("beta_fast") or 32)
    high = pair_that_turns(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001  # no division by zero where the ramp is a step
    slow = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)

    frequencies = _frequencies(config.theta, dim)
    return frequencies / factor * slow + frequencies * (1 - slow), _yarn_attention_factor(parameters, factor)


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return sharpness(parameters["mscale"]) / sharpness(parameters["mscale_all_dim"])
    return sharpness(1.0)


def _llama3(config: RopeConfig) -> Tensor:
    """Llama 3.1: long wavelengths are stretched by the factor, short ones stay, those between are blended."""
    parameters = config.parameters
    original = parameters.get("original_max_position_embeddings") or config.trained_positions
    factor, low, high = parameters["factor"], parameters["low_freq_factor"], parameters["high_freq_factor"]
    frequencies = _frequencies(config.theta, config.dim)
    turns = original * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * (1 - keep) + frequencies * keep
