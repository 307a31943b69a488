"""From a folder to a model: which family, which type of weights, every tensor in its place."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import AttentionBatch, Kernels, LayerCache
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.rope import ROPE_TYPES
from headwater_engine.layers.weights import Weights
from headwater_engine.models.checkpoint import open_checkpoint
from headwater_engine.models.config import DecoderConfig, ModelConfig, RawConfig
from headwater_engine.models.decoder import Decoder
from headwater_engine.models.llama import llama
from headwater_engine.models.mistral import mistral
from headwater_engine.models.qwen2 import qwen2
from headwater_engine.models.qwen3 import qwen3
from headwater_engine.models.source import ModelFolder, read_config

__all__ = ["FAMILIES", "LoadError", "Model", "load_model", "weights_dtype"]

FAMILIES: dict[str, Callable[[RawConfig], DecoderConfig]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}
"""How each `model_type` that we run natively reads its config.json."""


class Model(Protocol):
    """What the engine runs. Call it under `torch.inference_mode()`."""

    config: ModelConfig
    recordable: bool
    """Whether a step of one token a sequence always launches the same kernels on the same memory."""

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """[T] int64 -> hidden states [T, H]; writes the keys and values of the T tokens into `caches`, one a layer.

        With `rows` [R] int64, ascending, each the last token of its sequence: only their hidden states, [R, H]. A
        prompt needs no others, and what they cost in the last layer is saved.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, H] -> [R, vocabulary] float32."""


def weights_dtype(folder: ModelFolder, choice: str = "auto") -> torch.dtype:
    """The type to hold weights in: `choice` ("bfloat16", "float32"), or with "auto" the checkpoint's own.

    Quantised and float16 checkpoints become bfloat16. Raises LoadError.
    """
    config = read_config(folder)
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16") if choice == "auto" else choice
    match name.removeprefix("torch."):
        case "float32":
            return torch.float32
        case "bfloat16" | "float16":
            return torch.bfloat16
        case unknown:
            raise LoadError(f"The weights' type is {unknown!r}; allowed are float32, bfloat16 and float16.")


def load_model(
    folder: ModelFolder,
    *,
    kernels: Kernels,
    dtype: str = "auto",
    progress: Callable[[float], None] = lambda fraction: None,
) -> Model:
    """The model in `folder` with all its weights. Raises LoadError with a sentence for the user.

    `kernels` should be those for `weights_dtype(folder, dtype)`. `progress` is called with the fraction loaded, 0 to 1.
    """
    values = read_config(folder)
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "unknown")
        raise LoadError(f"The checkpoint is quantised ({method}), which is not supported yet.")
    progress(0.0)
    if not _is_native(values):
        from headwater_engine.models.transformers import TransformersModel  # seconds to import, and seldom needed

        adopted = TransformersModel(folder, kernels)
        progress(1.0)
        return adopted
    weights = Weights(open_checkpoint(folder, values), weights_dtype(folder, dtype))
    model = Decoder(FAMILIES[values["model_type"]](RawConfig(values)), Linears(weights, kernels), progress)
    weights.finish()
    return model


def _is_native(values: Mapping[str, Any]) -> bool:
    """Whether one of our families runs this config: some checkpoints vary the activation or the rotary scaling."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    return values["model_type"] in FAMILIES and values.get("hidden_act", "silu") == "silu" and rope_type in ROPE_TYPES
