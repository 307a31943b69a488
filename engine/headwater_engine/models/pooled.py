"""From a folder to a model that makes vectors: an encoder, or a decoder without its head, and what scores pairs."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import Kernels
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.weights import Checkpoint, Weights
from headwater_engine.models.checkpoint import SafetensorsCheckpoint, open_checkpoint
from headwater_engine.models.config import RawConfig
from headwater_engine.models.dense import Activation, Dense
from headwater_engine.models.encoder import Encoder, read_encoder
from headwater_engine.models.loading import HiddenStates, load_model, native_family, weights_dtype
from headwater_engine.models.pooling import PoolingPlan
from headwater_engine.models.source import ModelFolder, read_config
from headwater_engine.quantization.stored import StoredWeight

_ROBERTA: Final = ("classifier.dense", "classifier.out_proj")
_HEADS: Final = {"bert": ("pooler.dense", "classifier"), "roberta": _ROBERTA, "xlm-roberta": _ROBERTA}
"""Products of encoders' heads that score, by `model_type`."""
_DECODER_HEAD: Final = ("score",)
_BESIDE: Final = (
    "lm_head.",
    "cls.",
    "pooler.",
    "classifier.",
    "score.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)
"""What else a checkpoint may hold: heads for other ends, and numbers that say nothing."""

_FUNCTIONS: Final[dict[Activation, Callable[[Tensor], Tensor]]] = {
    Activation.IDENTITY: lambda x: x,
    Activation.TANH: torch.tanh,
    Activation.RELU: F.relu,
    Activation.GELU: F.gelu,
}


class Layer(NamedTuple):
    """A product in float32, and what its outputs go through."""

    weight: Tensor
    """[out, in]."""
    bias: Tensor | None
    activation: Activation


class Head:
    """Products one behind the other: what makes a score of a vector, or another vector."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self._layers:
            x = _FUNCTIONS[layer.activation](F.linear(x, layer.weight, layer.bias))
        return x


def load_pooled(
    folder: ModelFolder,
    plan: PoolingPlan,
    *,
    kernels: Kernels,
    dtype: str = "auto",
    ranks: Ranks = ALONE,
    progress: Callable[[float], None] = lambda fraction: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[HiddenStates, Head | None]:
    """The model, and what makes scores or other vectors of its vectors, where it has that. Raises LoadError.

    `checkpoint`: weights in place of the folder's own.
    """
    values = read_config(folder)
    family = None if plan.encoder else native_family(values)
    if not plan.encoder and family is None:
        if plan.scores:
            raise LoadError(f"{values['model_type']} runs through transformers here, and gives no scores.")
        whole = load_model(folder, kernels=kernels, dtype=dtype, ranks=ranks, progress=progress)
        return whole, _head(_dense_layers(plan.dense, kernels))
    if values.get("quantization_config"):
        raise LoadError("The checkpoint is quantised, which is not supported yet for models that make vectors.")
    raw = RawConfig(values)
    own = _as_model(checkpoint or open_checkpoint(folder), plan, values["model_type"])
    weights = Weights(own, weights_dtype(folder, dtype, kernels.device))
    linears = Linears(weights, kernels, ranks)
    model: HiddenStates
    if family is None:
        model = Encoder(read_encoder(raw), linears, progress)
    else:
        # The head is not asked for; nobody packs another table for it.
        model = family.build(RawConfig({**values, "tie_word_embeddings": True}), linears, progress)
    scoring = _layers(raw, weights, kernels, encoder=plan.encoder) if plan.scores else ()
    head = _head([*scoring, *_dense_layers(plan.dense, kernels)])
    weights.finish()
    return model, head


def _head(layers: Iterable[Layer]) -> Head | None:
    listed = list(layers)
    return Head(listed) if listed else None


def _dense_layers(dense: Sequence[Dense], kernels: Kernels) -> Iterator[Layer]:
    for each in dense:
        weights = Weights(SafetensorsCheckpoint(each.folder), torch.float32)
        weight = weights.take("linear.weight", each.outputs, each.inputs)
        bias = _numbers(weights.take("linear.bias", each.outputs), kernels) if each.bias else None
        weights.finish()
        yield Layer(_numbers(weight, kernels), bias, each.activation)


class _Renamed:
    """A checkpoint of which some tensors are not there, and the others go by other names."""

    def __init__(self, checkpoint: Checkpoint, stored: dict[str, str]) -> None:
        """`stored`: what a tensor is called in it, by the name that it is asked for."""
        self._checkpoint = checkpoint
        self._stored = stored

    def names(self) -> Collection[str]:
        return self._stored.keys()

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        return self._checkpoint.read(self._stored.get(name, name), shape)


def _as_model(checkpoint: Checkpoint, plan: PoolingPlan, kind: str) -> Checkpoint:
    """With the names that it would have by itself, whatever it was saved as a part of."""
    prefix = f"{kind.removeprefix('xlm-')}." if plan.encoder else "model."
    head = tuple(f"{name}." for name in _head_of(kind)) if plan.scores else ()
    stored: dict[str, str] = {}
    for name in checkpoint.names():
        own = name.removeprefix(prefix)
        is_head = own.startswith(head)
        if own.startswith(_BESIDE) and not is_head:
            continue
        if plan.encoder:  # as TensorFlow called them, and old checkpoints do
            own = own.replace(".gamma", ".weight").replace(".beta", ".bias")
        elif not is_head:
            own = prefix + own
        stored[own] = name
    return _Renamed(checkpoint, stored)


def _head_of(kind: str) -> tuple[str, ...]:
    return _HEADS.get(kind, _DECODER_HEAD)


def _layers(raw: RawConfig, weights: Weights, kernels: Kernels, *, encoder: bool) -> Iterator[Layer]:
    """Of the head: the last product has one output; those before it have as many as inputs, and tanh behind them."""
    hidden, names = raw.integer("hidden_size"), _head_of(str(raw.values["model_type"]))
    for name in names:
        outputs, activation = (1, Activation.IDENTITY) if name == names[-1] else (hidden, Activation.TANH)
        weight = weights.take(f"{name}.weight", outputs, hidden)
        bias = weights.take(f"{name}.bias", outputs) if encoder else None
        yield Layer(_numbers(weight, kernels), None if bias is None else _numbers(bias, kernels), activation)


def _numbers(weight: StoredWeight, kernels: Kernels) -> Tensor:
    """A copy of its own, also where the file is of float32."""
    return weight.dense().to(kernels.device, torch.float32, copy=True)
