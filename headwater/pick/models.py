"""Models: those of the catalog, whose shapes are facts, and estimates for the others, which say that they are.

The catalog is data: `catalog/*.yaml`, made by `benchmarks/pick_catalog.py` from public configs, each file with its
source and revision. A model that is not there is read with --config, or estimated from its size, on the high side.
"""

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from headwater.pick import names
from headwater.pick.config import family_of
from headwater.pick.precision import precision_in
from headwater.pick.shape import Kept, Shape, size_text

_CATALOG: Final = Path(__file__).parent / "catalog"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

SAME_SIZE: Final = 0.1
"""How far two sizes may differ, as a share, to be called the same: 8B is 8.03B."""


@cache
def catalog() -> dict[str, Shape]:
    """Every known model, by what `names.base` makes of its name. Later files know better than earlier ones."""
    found: dict[str, Shape] = {}
    for file in sorted(_CATALOG.glob("*.yaml")):
        data: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
        source = f"{data['source']} at {str(data['revision'])[:12]}"
        for hub, entry in data["models"].items():
            shape = _shape(hub, entry, source, found)
            if precision_in(hub) not in (None, "none"):
                shape = _unpacked(shape, found.get(names.base(hub)))
            found[names.base(hub)] = shape
    return found


def _unpacked(variant: Shape, model: Shape | None) -> Shape:
    """The model itself, known by a repository that holds a quantized form of it: its own may hold it otherwise."""
    if model is None:
        return replace(variant, published="none")
    return replace(variant, name=model.name, hub=model.hub, published=model.published)


def _shape(hub: str, entry: dict[str, Any], source: str, found: dict[str, Shape]) -> Shape:
    name = re.sub(r"-([Ii]nstruct|it|chat-hf)(-v[\d.]+|-\d+)?$", "", hub.rpartition("/")[2])
    values = {key: value for key, value in entry.items() if key not in ("kept", "like")}
    if "kept" in entry:
        values["kept"] = tuple(Kept(*each) for each in entry["kept"])
    if alike := entry.get("like"):
        model = found[names.base(alike)]
        return replace(model, name=name, hub=hub, source=f"{source}; else as {model.name}: {model.source}", **values)
    if "kept" not in entry:  # what is known is its size, and whether it has experts
        return replace(
            estimate(float(entry["parameters"]), entry.get("family"), entry.get("active")),
            name=name,
            positions=entry.get("positions"),
            published=entry.get("published", "none"),
            hub=hub,
            source=source,
        )
    return Shape(name=name, hub=hub, source=source, **({"positions": None, "family": None} | values))


def named(name: str) -> Shape | None:
    """The known model of which this is the name or a variant: with or without owner, `-Instruct`, `-AWQ`."""
    last = names.base(name)
    known = catalog()
    # A name before it, as in `Meta-Llama-3.1-8B` or that of who tuned it, makes no other model of it.
    starts = [0, *(found.end() for found in re.finditer("-", last))]
    for start in starts:
        if (shape := known.get(last[start:])) and (start == 0 or names.size_in(last[start:])):
            return shape
    return None


def close_to(name: str) -> str | None:
    """A known model whose name is spelled nearly like this one."""
    known = catalog()
    found = difflib.get_close_matches(names.without_slip(names.base(name)), known, n=1, cutoff=0.8)
    return known[found[0]].hub if found else None


def like(family: str, parameters: float) -> Shape | None:
    """The shape of the family's known model that is nearest in size, if it has the same size."""
    same = [shape for shape in catalog().values() if shape.family == family and not shape.estimated]
    nearest = min(same, key=lambda shape: abs(math.log(shape.parameters / parameters)), default=None)
    if nearest is None or abs(nearest.parameters / parameters - 1) > SAME_SIZE:
        return None
    return replace(nearest, name=f"A model like {nearest.name}", positions=None, hub=None, published="none")


def families() -> tuple[str, ...]:
    return tuple(dict.fromkeys(shape.family for shape in catalog().values() if shape.family))


def family_in(name: str) -> str | None:
    """The family that a name tells; the last one, since `DeepSeek-R1-Distill-Llama-8B` is a Llama."""
    if known := named(name):
        return known.family
    last = name.rstrip("/").rpartition("/")[2].lower()
    # Not within a word: there is a phi in every dolphin.
    found = list(re.finditer(rf"(?<![a-z])({'|'.join(map(re.escape, _words()))})", last))
    return family_of(found[-1][1].replace("-", "_")) or found[-1][1] if found else None


def _words() -> Iterator[str]:
    yield from sorted({*families(), "smollm"}, key=len, reverse=True)


def estimate(parameters: float, family: str | None = None, active: float | None = None) -> Shape:
    """A shape that a decoder with so many parameters may have.

    Layers of width h have 12 h^2 parameters, and models are about 100 times as wide as they have layers:
    layers = (parameters / 120,000)^(1/3). With 8 KV heads of 128, the commonest choice, that is 28 % more KV than
    Llama-3.1-8B has, and 5 % more than its sibling with 70B. The embedding is that of a vocabulary of 128,000.

    A mixture of experts is as deep as a dense model of the geometric mean of all its parameters and the active ones.
    """
    dense = math.sqrt(parameters * active) if active else parameters
    layers = max(1, math.ceil((dense / 120_000) ** (1 / 3)))
    embedding = min(2 * 128_000 * 100.0 * layers, parameters / 4)
    return Shape(
        name=f"A model of {size_text(parameters)} parameters",
        family=family,
        parameters=parameters,
        active=active or parameters,
        embedding=embedding,
        experts=max(0.0, parameters - active) if active else 0.0,
        layers=layers,
        hidden=100 * layers,
        heads=64,
        vocabulary=128_000,
        kept=(Kept(layers, 8, 256),),
        positions=None,
        estimated=True,
    )
