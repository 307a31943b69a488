"""From a folder to a model: which family, which type of weights, every tensor in its place."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog
from torch import Tensor

from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import AttentionBatch, Kernels, LayerCache
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.rope import ROPE_TYPES
from headwater_engine.layers.weights import Checkpoint, Weights
from headwater_engine.models.checkpoint import open_checkpoint
from headwater_engine.models.config import ModelConfig, RawConfig, rope_object, rope_type
from headwater_engine.models.dtypes import weights_dtype
from headwater_engine.models.families import FAMILIES
from headwater_engine.models.family import Family
from headwater_engine.models.source import ModelFolder, is_text_part, read_config

__all__ = ["LoadError", "Model", "load_model", "weights_dtype"]

log = structlog.get_logger(__name__)


class HiddenStates(Protocol):
    """What makes vectors of tokens. Call it under `torch.inference_mode()`."""

    config: ModelConfig

    def reach(self, positions: int) -> None:
        """Prepare for sequences of so many tokens, at most `config.max_positions`; before the first `forward`."""

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """[T] int64 -> hidden states [T, H]; writes the keys and values of the T tokens into `caches`, one a layer.

        With `rows` [R] int64, ascending, each the last token of its sequence: only their hidden states, [R, H]. A
        prompt needs no others, and what they cost in the last layer is saved.
        """


class Model(HiddenStates, Protocol):
    """What the engine runs, where it generates text."""

    recordable: bool
    """Whether a step of one token a sequence always launches the same kernels on the same memory."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, H] -> [R, vocabulary] float32.

        Among ranks, of this rank's tokens, of which each has as many: what is too much for the vocabulary is at the end
        of the last ones, and says nothing.
        """


def load_model(
    folder: ModelFolder,
    *,
    kernels: Kernels,
    dtype: str = "auto",
    ranks: Ranks = ALONE,
    progress: Callable[[float], None] = lambda fraction: None,
    checkpoint: Checkpoint | None = None,
) -> Model:
    """The model in `folder`, or what this rank has of it. Raises LoadError with a sentence for the user.

    `kernels` should be those for `weights_dtype(folder, dtype, kernels.device)`. `progress` is called with the fraction
    loaded, 0 to 1. `checkpoint`: of a native family, weights in place of the folder's own.
    """
    values = read_config(folder)
    if quantisation := RawConfig(values).object("quantization_config").values:
        method = quantisation.get("quant_method", "unknown")
        raise LoadError(
            f"The checkpoint is quantised ({method}), as quantization_config says, which is not supported yet."
        )
    progress(0.0)
    family = native_family(values)
    if family is None and ranks.size > 1:
        raise LoadError(f"{values['model_type']} runs through transformers, and cannot be shared among ranks.")
    if family is None:
        from headwater_engine.models.transformers import TransformersModel  # seconds to import, and seldom needed

        adopted = TransformersModel(folder, kernels)
        progress(1.0)
        return adopted
    if is_text_part(folder) and checkpoint is None:
        log.info("only the text part of this model runs; messages with images are refused")
    weights = Weights(checkpoint or open_checkpoint(folder), weights_dtype(folder, dtype, kernels.device))
    model = family.build(RawConfig(values), Linears(weights, kernels, ranks), progress)
    weights.finish()
    return model


def native_family(values: Mapping[str, Any]) -> Family | None:
    """The family of ours that runs this config: some checkpoints vary the activation or the rotary scaling."""
    family = FAMILIES.get(values["model_type"])
    if family is None:
        return None
    raw = RawConfig(values)
    rope = rope_object(raw)
    # One for all layers, or one for each kind of layer.
    ropes = [rope, *(rope.object(name) for name, each in rope.values.items() if isinstance(each, Mapping))]
    if any(rope_type(each) not in ROPE_TYPES for each in ropes):
        return None
    activation = raw.text("hidden_activation") or raw.text("hidden_act") or family.activation
    return family if activation == family.activation else None
