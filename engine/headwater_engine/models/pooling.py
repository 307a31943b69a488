"""How a model's hidden states become one vector, or one score: what its folder says of that.

Light on purpose (no torch): the HTTP process wants to know it, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from headwater_engine.errors import LoadError
from headwater_engine.models.dense import Activation, Dense, read_dense
from headwater_engine.models.source import ModelFolder, WeightsKind, read_config, read_list, read_object

ENCODERS: Final = {"bert", "roberta", "xlm-roberta"}
"""`model_type`s in which tokens see those behind them, too."""

_SIGMOID = "torch.nn.modules.activation.Sigmoid"
_CLASSIFIER = "ForSequenceClassification"
_ORDER: Final = ("Transformer", "Pooling", "Dense", "Normalize")
"""Parts of sentence-transformers that are done here; of Dense there may be several."""


class Pooling(StrEnum):
    LAST = "last"
    """The hidden state of the last token."""
    MEAN = "mean"
    """That of all tokens together."""
    CLS = "cls"
    """That of the first one."""


_MODES: Final = {
    "lasttoken": Pooling.LAST,
    "mean": Pooling.MEAN,
    "mean_tokens": Pooling.MEAN,
    "cls": Pooling.CLS,
    "cls_token": Pooling.CLS,
}
"""What sentence-transformers call them, now and before; all their other modes are not done here."""


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """Of a model that makes vectors, or that scores pairs of texts."""

    pooling: Pooling
    encoder: bool
    """Tokens see those behind them, too: a prompt is computed as a whole, and nothing is kept of it."""
    normalized: bool = True
    """Vectors have the length 1."""
    scores: bool = False
    """The vector is a single number, of a pair of texts."""
    sigmoid: bool = True
    """Which becomes one from 0 to 1."""
    second_text: int = 0
    """In a pair, tokens of the second text are so much larger; 0: nothing tells them apart."""
    longest: int | None = None
    """Tokens of a text, where the folder says less than the model can."""
    dimensions: tuple[int, ...] = ()
    """To which a vector may be cut; empty: to any."""
    dense: tuple[Dense, ...] = ()
    """Products that a vector goes through, one behind the other, before it has the length 1."""


def plan_pooling(folder: ModelFolder, runner: str = "auto", pooling: str = "auto") -> PoolingPlan | None:
    """None: the model generates text. `runner`, `pooling`: as of the flags. Raises LoadError."""
    values = read_config(folder)
    encoder, scores = values["model_type"] in ENCODERS, _has_classifier(values)
    modules = _modules(folder)
    if runner == "generate" and (encoder or scores):
        raise LoadError(f"{folder.name} makes vectors or scores, and no text: leave out --runner generate.")
    if runner == "generate" or (runner == "auto" and not (encoder or scores or modules)):
        return None
    matryoshka = values.get("matryoshka_dimensions")
    plan = PoolingPlan(
        pooling=_pooling(folder, modules, encoder=encoder, scores=scores)
        if pooling == "auto" or scores
        else Pooling(pooling),
        encoder=encoder,
        normalized=not modules or "Normalize" in modules,
        scores=scores,
        sigmoid=not scores or _ends_in_sigmoid(values),
        second_text=_whole(values, "vocab_size", 0) if encoder and _whole(values, "type_vocab_size", 2) > 1 else 0,
        longest=_longest(folder),
        dimensions=tuple(sorted(each for each in matryoshka if isinstance(each, int)))
        if isinstance(matryoshka, list)
        else (),
        dense=_dense(folder, modules, values),
    )
    if scores and (labels := _labels(values)) != 1:
        raise LoadError(f"{folder.name} sorts texts into {labels} classes; only heads with one score run here.")
    return plan


def _whole(values: Mapping[str, Any], name: str, default: int) -> int:
    """Whoever loads the model says what is wrong with it."""
    value = values.get(name)
    return value if isinstance(value, int) else default


def _has_classifier(values: Mapping[str, Any]) -> bool:
    names = values.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_CLASSIFIER) for name in names)


def _labels(values: Mapping[str, Any]) -> int:
    """transformers writes them by name, and leaves two out."""
    names = values.get("id2label")
    return len(names) if isinstance(names, Mapping) else 2


def _ends_in_sigmoid(values: Mapping[str, Any]) -> bool:
    """What sentence-transformers makes of a score. Raises LoadError for what is done here by nobody."""
    own = values.get("sentence_transformers")
    name = own.get("activation_fn") if isinstance(own, Mapping) else None
    name = name or values.get("sbert_ce_default_activation_function") or _SIGMOID
    if name not in (Activation.IDENTITY, _SIGMOID):
        raise LoadError(f"config.json: the model's scores go through {name!r}, which is not done here.")
    return bool(name == _SIGMOID)


def _modules(folder: ModelFolder) -> dict[str, list[Path]]:
    """The parts that sentence-transformers puts together, by their kinds; empty where the folder has no such file.

    Raises LoadError for one that is not done here.
    """
    file = _file(folder, "modules.json")
    if file is None:
        return {}
    parts: list[tuple[str, Path]] = []
    for each in read_list(file):
        name = str(each.get("type") if isinstance(each, dict) else each).rpartition(".")[2]
        if name not in _ORDER:
            raise LoadError(f"{file} has a part of the kind {name!r}, which is not done here.")
        parts.append((name, file.parent / str(each.get("path", ""))))
    names = [name for name, _ in parts]
    if names != sorted(names, key=_ORDER.index) or ("Dense" in names and "Pooling" not in names):
        raise LoadError(f"{file} has {', '.join(names)}; only {', '.join(_ORDER)}, in this order, are done here.")
    return {kind: [path for name, path in parts if name == kind] for kind in names}


def _dense(folder: ModelFolder, modules: Mapping[str, Sequence[Path]], values: Mapping[str, Any]) -> tuple[Dense, ...]:
    found = tuple(map(read_dense, modules.get("Dense", ())))
    if found and _has_classifier(values):
        raise LoadError(f"{folder.name} has a head and a Dense, too; one of them runs here.")
    size = _whole(values, "hidden_size", found[0].inputs) if found else 0
    for each in found:
        if each.inputs != size:
            raise LoadError(f"{each.folder} takes vectors of {each.inputs} numbers; those before it have {size}.")
        size = each.outputs
    return found


def _pooling(folder: ModelFolder, modules: Mapping[str, Sequence[Path]], *, encoder: bool, scores: bool) -> Pooling:
    if scores or "Pooling" not in modules:
        # As sentence-transformers pools an encoder of which nothing is said; heads stand on the first token.
        return Pooling.LAST if not encoder else Pooling.CLS if scores else Pooling.MEAN
    file = modules["Pooling"][0] / "config.json"
    values = read_object(file)
    modes = [name.removeprefix("pooling_mode_") for name, chosen in values.items() if chosen is True]
    if isinstance(named := values.get("pooling_mode"), str):  # one word, in newer versions
        modes = [named]
    modes = [name for name in modes if name != "include_prompt"]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise LoadError(f"{file} pools by {modes!r}; done here is one of {', '.join(_MODES)}.")
    return _MODES[modes[0]]


def _longest(folder: ModelFolder) -> int | None:
    file = _file(folder, "sentence_bert_config.json")
    longest = None if file is None else read_object(file).get("max_seq_length")
    return longest if isinstance(longest, int) and longest > 0 else None


def _file(folder: ModelFolder, name: str) -> Path | None:
    """A file of the model's folder, where there is one."""
    if folder.path is None or folder.kind is WeightsKind.GGUF or not (folder.path / name).is_file():
        return None
    return folder.path / name
