"""Every other decoder of `transformers`, with its attention replaced by ours, on the same paged cache.

transformers lets a model's attention be any registered function. Ours writes keys and values to the paged cache and
attends there; everything else of the model sees one long sequence of unrelated tokens, with their positions. That is
right as long as attention is the only place where tokens meet. `_check` makes sure of it, by experiment.

Weights are held in the type of the activations: the modules are transformers' own and know nothing of our kernels'
packed forms. So a native family is faster and smaller where there is one.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import AttentionBatch, AttentionRules, CacheSpec, Kernels, LayerCache
from headwater_engine.models.config import ModelConfig
from headwater_engine.models.source import ModelFolder, WeightsKind, read_config

_AutoModel: Any = transformers.AutoModelForCausalLM
_ATTENTION = "headwater_paged"
_LAYER_TYPES = {"full_attention", "sliding_attention", "attention"}


@dataclass(frozen=True, slots=True)
class _Paged:
    """Travels through transformers' forward as the keyword argument `paged`."""

    kernels: Kernels
    batch: AttentionBatch
    caches: list[LayerCache]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, rules: AttentionRules) -> Tensor:
        """queries [T, heads, D], keys and values [T, kv heads, D] -> [T, heads, value dim]."""
        return self.kernels.attend(queries, keys, values, self.caches[layer], self.batch, rules)


@dataclass(slots=True)
class _Probe:
    """Stands in for `_Paged` in the check: lets no token see another, and writes down what attention was asked."""

    layers: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, rules: AttentionRules) -> Tensor:
        if layer in self.layers:
            raise LoadError(f"Layer {layer} attends more than once, and the paged cache has one place a layer.")
        self.layers[layer] = (queries, keys, values)
        return queries.new_zeros(*queries.shape[:2], values.shape[-1])


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: _Paged | _Probe | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: [1, heads, T, D] in, [1, T, heads, value dim] out."""
    name = f"{type(module).__name__} of transformers"
    if paged is None:
        raise LoadError(f"{name} does not hand on what the paged cache needs.")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise LoadError(f"{name} is not causal.")
    if position_bias is not None or (attention_mask is not None and attention_mask.shape != (1, 1, 1, 1)):
        raise LoadError(f"{name} has a mask or bias of its own.")
    if attention_mask is not None:
        sliding_window = int(attention_mask) or None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rules = AttentionRules(scale, sliding_window, softcap, s_aux)
    queries, keys, values = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    layer: Any = module.layer_idx
    return paged.attend(layer, queries, keys, values, rules).unsqueeze(0), None


def _mask(*, local_size: int | None = None, use_vmap: bool = False, **_: Any) -> Tensor:
    """What models get for a mask, and pass on to `_attention`: a tensor with the sliding window in it, 0 for none.

    Not all of them tell the window to their attention beside; the mask is what they go by.
    """
    if use_vmap:
        raise LoadError("The model masks its attention with a function of its own.")
    return torch.full((1, 1, 1, 1), local_size or 0)


transformers.AttentionInterface.register(_ATTENTION, _attention)
transformers.AttentionMaskInterface.register(_ATTENTION, _mask)


class _Given(MoeModelOutputWithPast):
    """The output of a decoder, of which only the hidden states are there."""

    def __getattr__(self, name: str) -> None:
        """Heads pass on what some decoders return beside."""


class _HandThrough(nn.Module):
    """Takes the place of the decoder in a causal LM, so that what is left of it turns hidden states into logits."""

    def __init__(self) -> None:
        super().__init__()
        # OPT's head calls the decoder inside of the decoder. Not as a submodule, which would be one of itself.
        object.__setattr__(self, "decoder", self)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Given:
        return _Given(last_hidden_state=inputs_embeds)


class TransformersModel:
    """A causal language model of transformers on the paged cache."""

    recordable = False
    """Its modules may ask the GPU for a number in the middle of a step."""

    def __init__(self, folder: ModelFolder, kernels: Kernels) -> None:
        """Loads it, and tries on a few tokens whether it can run here. Raises LoadError."""
        transformers.utils.logging.disable_progress_bar()
        config = _read_config(folder)
        model = _load(folder, config, kernels.dtype).to(kernels.device)
        self._decoder: nn.Module = getattr(model, model.base_model_prefix, None) or model
        if self._decoder is model:
            raise LoadError(f"{type(model).__name__} of transformers does not separate its decoder from its head.")
        setattr(model, model.base_model_prefix, _HandThrough())
        self._head = model
        self._kernels = kernels
        with torch.inference_mode():
            caches = self._check(config.get_text_config().num_hidden_layers, type(model).__name__)
        self.config = ModelConfig(config.get_text_config().vocab_size, caches, _max_positions(config))

    def reach(self, positions: int) -> None:
        """Its modules compute angles as they need them."""

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        """[T] int64 -> hidden states [T, hidden], or those of `rows`; writes the T keys and values of each layer."""
        hidden = self._run(tokens, batch.positions, _Paged(self._kernels, batch, caches))
        return hidden if rows is None else hidden[rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocabulary] float32."""
        return self._head(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits.squeeze(0).float()

    def _run(self, tokens: Tensor, positions: Tensor, paged: _Paged | _Probe) -> Tensor:
        output = self._decoder(
            input_ids=tokens.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, paged=paged
        )
        return output.last_hidden_state.squeeze(0)

    def _check(self, layers: int, name: str) -> tuple[CacheSpec, ...]:
        """What each layer keeps of a token.

        Without attention, what becomes of a token at a position must not depend on its neighbours. It does in models
        with recurrent or convolutional layers, and in those that count positions themselves.
        """
        try:
            alone, pair = _Probe(), _Probe()
            three, one_and_three, five, none_and_five = (
                torch.tensor(numbers, device=self._kernels.device) for numbers in ([3], [1, 3], [5], [0, 5])
            )
            hidden = self._run(three, five, alone)
            neighboured = self._run(one_and_three, none_and_five, pair)
            self.logits(hidden)
        except LoadError:
            raise
        except Exception as error:
            raise LoadError(f"{name} of transformers does not run on the paged cache: {error!r}") from error
        if alone.layers.keys() != set(range(layers)):
            raise LoadError(f"{name}: {layers - len(alone.layers)} of {layers} layers keep a state of another kind.")
        same = _alike(hidden[0], neighboured[1]) and all(
            _alike(one[0], two[1])
            for layer in alone.layers
            for one, two in zip(alone.layers[layer], pair.layers[layer], strict=True)
        )
        if not same:
            raise LoadError(f"{name}: tokens meet outside of attention, in a state or in positions of its own.")
        kept = (alone.layers[layer][1:] for layer in range(layers))
        return tuple(CacheSpec(keys.shape[1], keys.shape[2], values.shape[2]) for keys, values in kept)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether they differ by no more than bfloat16 products, summed in another order over many layers, explain."""
    return bool((one - other).norm() <= 0.1 * one.norm())


def _read_config(folder: ModelFolder) -> Any:
    """The config as transformers' own class. Raises LoadError for what cannot run on a cache of keys and values."""
    kind = read_config(folder)["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        raise LoadError(f"Neither we nor transformers {transformers.__version__} know the model_type {kind!r}.")
    try:
        if folder.shape is not None:
            config = transformers.AutoConfig.for_model(**folder.shape)
        else:
            config = transformers.AutoConfig.from_pretrained(str(folder.path))
    except Exception as error:  # each of transformers' configs checks itself, and raises as it likes
        raise LoadError(
            f"transformers {transformers.__version__} does not take this config of {kind}: {error}"
        ) from error
    if config.is_encoder_decoder:
        raise LoadError(f"{kind} is an encoder-decoder model; only decoders are supported.")
    if type(config) not in _AutoModel._model_mapping:
        raise LoadError(f"{kind} is no causal language model in transformers {transformers.__version__}.")
    other = set(getattr(config.get_text_config(), "layer_types", None) or ()) - _LAYER_TYPES
    if other:
        raise LoadError(f"{kind} has layers of a kind that is not supported: {', '.join(sorted(other))}.")
    model_class = _AutoModel._model_mapping[type(config)]
    if model_class._is_stateful:
        raise LoadError(f"{kind} keeps a recurrent state, which the paged cache has no place for.")
    if not model_class._supports_attention_backend:
        raise LoadError(f"transformers does not let the attention of {kind} be replaced.")
    return config


def _load(folder: ModelFolder, config: Any, dtype: torch.dtype) -> Any:
    try:
        if folder.kind is WeightsKind.RANDOM:
            torch.manual_seed(0)
            return _AutoModel.from_config(config, dtype=dtype, attn_implementation=_ATTENTION).eval()
        model, report = _AutoModel.from_pretrained(
            folder.path, config=config, dtype=dtype, attn_implementation=_ATTENTION, output_loading_info=True
        )
    except Exception as error:  # as many kinds as there are models
        raise LoadError(f"transformers cannot load {folder.name}: {error}") from error
    for problem in ("missing", "mismatched", "unexpected"):
        if names := sorted(map(str, report.get(f"{problem}_keys") or ())):
            some = ", ".join(names[:3])
            raise LoadError(f"The checkpoint of {folder.name} does not fit its config: {problem} tensors {some}.")
    return model.eval()


def _max_positions(config: Any) -> int:
    """The context. longrope changes the angles of all tokens of a batch once one of them stands beyond the trained
    context, also those of other sequences; with it, the context ends there."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise LoadError(f"The config of {config.model_type} does not say max_position_embeddings.")
    rope = getattr(text, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") == "longrope":
            limit = min(limit, parameters["original_max_position_embeddings"])
    return limit
