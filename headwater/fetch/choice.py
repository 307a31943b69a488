"""Which files of a model are worth fetching: repositories hold the same weights in many formats.

One rule for all sources, by folder and by name; docs/weights.md has it as a table.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Final

from headwater.fetch.manifest import MANIFEST

_NEVER: Final = (
    *(".git*", "*/.git*", ".cache/*", "__pycache__/*", "*/__pycache__/*", "*.pyc", MANIFEST),
    *("*.h5", "*.msgpack", "*.ot", "*.tflite", "*.onnx", "*.onnx_data*", "*.mlpackage/*", "*.mlmodelc/*"),
)
"""What is no part of a model, and formats that no server reads here."""
_OF_TRAINING: Final = re.compile(
    r"(^|/)(checkpoint-\d+|global_step\d+)/|(^|/)(training_args|optimizer|scheduler|rng_state\w*)\.(bin|pt|pth)$"
)
"""What training leaves beside a model."""
_AGAIN: Final = re.compile(r"(^|/)(original|metal|onnx|openvino|coreml)/")
"""Folders with the same weights once more."""
_PICKLED: Final = re.compile(r"(adapter_|diffusion_|open_clip_)?(pytorch_)?model[^/]*\.bin")
_QUANTIZATION: Final = re.compile(r"(?i)(?<![a-z0-9])(ud-)?((iq|q|tq)\d\w*|bf16|fp?16|fp?32|mxfp4\w*)(?![a-z0-9])")
_BEST_QUANTIZATION: Final = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0")
"""What people take who take one, in this order."""


class Format(IntEnum):
    """Of weights; the first that is there is taken."""

    SAFETENSORS = 0
    PICKLED = 1
    GGUF = 2
    AS_TRAINED = 3


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of a source, in patterns of whole names in which `*` stands for slashes, too."""

    include: tuple[str, ...] = ()
    """These instead of what the rule would take."""
    exclude: tuple[str, ...] = ()

    def choose(self, names: Sequence[str]) -> list[str]:
        chosen = [name for name in names if _matches(name, self.include)] if self.include else choose(names)
        return [name for name in chosen if name != MANIFEST and not _matches(name, self.exclude)]


def choose(names: Sequence[str]) -> list[str]:
    """All that is not weights; of the weights, in each folder, the best format."""
    left = [name for name in names if not _matches(name, _NEVER) and not _OF_TRAINING.search(name)]
    plain = [name for name in left if not _AGAIN.search(name)]
    if any(_format(name) is not None for name in plain):
        left = plain
    formats = {name: kind for name in left if (kind := _format(name)) is not None}
    taken = _best(formats)
    return [name for name in left if name not in formats or name in taken]


def _best(formats: dict[str, Format]) -> set[str]:
    # An adapter is not the model that lies beside it: each has its own best format.
    groups: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for name in formats:
        folder, _, base = name.rpartition("/")
        groups[folder, base.startswith("adapter_")].append(name)
    taken = {
        name for group in groups.values() for name in group if formats[name] == min(formats[each] for each in group)
    }
    # A folder of its own does not make these two anything but the same weights again.
    first = min((formats[name] for name in taken), default=Format.SAFETENSORS)
    taken = {name for name in taken if formats[name] < Format.GGUF or formats[name] == first}
    return _one_quantization(taken) if first is Format.GGUF else taken


def _one_quantization(names: Iterable[str]) -> set[str]:
    """Of each model. A file without one in its name is a model by itself."""
    models: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        found = [match[0].upper() for match in _QUANTIZATION.finditer(name)]
        model = _QUANTIZATION.sub("", name) if found else name
        models[re.sub(r"-\d{5}-of-\d{5}", "", model)][found[-1] if found else ""].append(name)
    return {name for by_kind in models.values() for name in by_kind[min(by_kind, key=_rank)]}


def _rank(quantization: str) -> tuple[int, str]:
    known = quantization in _BEST_QUANTIZATION
    return (_BEST_QUANTIZATION.index(quantization) if known else len(_BEST_QUANTIZATION)), quantization


def _format(name: str) -> Format | None:
    """None: no weights."""
    base = name.rpartition("/")[2]
    if base.endswith((".pth", ".pt", ".ckpt")) or (base.startswith("consolidated") and not base.endswith(".json")):
        return Format.AS_TRAINED
    if base.endswith(".safetensors"):
        return Format.SAFETENSORS
    if base.endswith(".gguf"):
        return Format.GGUF
    return Format.PICKLED if _PICKLED.fullmatch(base) else None


def below(names: Sequence[str], path: str) -> dict[str, str]:
    """Of the names those in `path`, or `path` itself where it is a file, and what each is called from there on."""
    if not path:
        return {name: name for name in names}
    inside = {name: name.removeprefix(f"{path}/") for name in names if name.startswith(f"{path}/")}
    # In an S3 store, an empty object of a folder's name may stand for the folder.
    return inside or ({path: path.rpartition("/")[2]} if path in names else {})


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
