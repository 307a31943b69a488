"""`pick`: from a workload to ranked backends and the deployments to make of them, or to why there are none."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from headwater.pick import models, names
from headwater.pick.arithmetic import explain, shortfall
from headwater.pick.contradictions import contradiction
from headwater.pick.layout import layouts
from headwater.pick.measured import Measured
from headwater.pick.memory import Plan
from headwater.pick.ranking import Candidate, Excluded, Ranking, rank
from headwater.pick.shape import Shape
from headwater.pick.sizing import find_plan
from headwater.pick.workload import Workload, WorkloadError, workload


class ImpossibleError(Exception):
    """No backend can serve the workload. One line: the arithmetic, or what each lacks, and what would do."""


@dataclass(frozen=True, slots=True)
class Part:
    """One ModelDeployment to make."""

    candidate: Candidate
    plan: Plan
    workload: Workload
    """The part of the traffic that it is for."""
    weight: int
    """Percent of the requests that it is sized for."""
    role: str
    """What sets its name apart from the other's; empty where it is the only one."""

    def arithmetic(self) -> list[tuple[str, str]]:
        """The plan's figures and how they come about."""
        assert self.workload.shape is not None
        return list(explain(self.workload, self.workload.shape, self.candidate.able, self.plan))


@dataclass(frozen=True, slots=True)
class Pick:
    workload: Workload
    shape: Shape
    places: tuple[Candidate, ...]
    """The backends that can serve the workload, the best first."""
    excluded: tuple[Excluded, ...]
    parts: tuple[Part, ...]
    """One deployment, or two behind one name where the traffic is mixed."""
    notes: tuple[str, ...]
    """Sentences on what the figures do not say."""

    @property
    def backend(self) -> str:
        return self.places[0].backend


def pick(workload: Workload) -> Pick:
    """Choose how to serve a workload. Pure.

    Raises ImpossibleError; and WorkloadError where the model's size is not known.
    """
    shape = workload.shape
    if shape is None:
        raise WorkloadError(_unknown(workload))
    if wrong := contradiction(workload, shape):
        raise WorkloadError(wrong)
    if shape.positions and workload.tokens > shape.positions:
        raise ImpossibleError(
            f"{workload.input_tokens:,} + {workload.output_tokens:,} tokens = {workload.tokens:,} > "
            f"{shape.positions:,} positions of {shape.name}; shorten the requests, or take a model with more positions"
        )
    ranking = rank(workload)
    if not ranking.places:
        raise ImpossibleError(_refusal(workload, shape, ranking))
    parts = _two_parts(workload, ranking) if workload.mixed else None
    return Pick(
        workload=workload,
        shape=shape,
        places=ranking.places,
        excluded=ranking.excluded,
        parts=parts or (_whole(workload, ranking.places[0]),),
        notes=tuple(_notes(workload, shape, parts is not None)),
    )


def pick_kinds(values: Mapping[str, Any], read: Shape | None = None, measured: Measured | None = None) -> Pick:
    """`pick` where `gpu` may name several kinds, as in `h100:4,l40s:8`: the one that costs least, or is the fewest.

    Raises WorkloadError; and ImpossibleError, of the first kind, where none can serve the workload.
    """
    kinds = [kind.partition(":") for kind in str(values.get("gpu", "")).split(",")]
    if len(kinds) == 1 and not kinds[0][1]:
        return pick(workload(values, read, measured))
    found: list[Pick] = []
    refusal: ImpossibleError | None = None
    for name, _, count in kinds:
        own = {**values, "gpu": name.strip()} | ({"gpus": count} if count else {})
        try:
            found.append(pick(workload(own, read, measured)))
        except ImpossibleError as error:
            refusal = refusal or error
    if not found:
        assert refusal is not None
        raise refusal
    best = min(found, key=_cost)
    others = [f"{each.workload.accelerator.title}: {_gpus(each)}" for each in found if each is not best]
    note = f"Of the kinds there are it is the cheapest, or the fewest GPUs; {', '.join(others)}."
    return replace(best, notes=(*best.notes, note)) if others else best


def _gpus(pick: Pick) -> int:
    return sum(part.plan.gpus for part in pick.parts)


def _cost(pick: Pick) -> tuple[bool, float]:
    """Those that hold all requests first."""
    short = any(part.plan.replicas * part.plan.requests < part.workload.concurrency for part in pick.parts)
    return short, _gpus(pick) * (pick.workload.gpu_price or 1.0)


def _unknown(workload: Workload) -> str:
    close = models.close_to(workload.source) if workload.source else None
    hint = f"did you mean {close}? Else it" if close else "it"
    if workload.source and names.has_experts(workload.source) and names.size_in(workload.source):
        return (
            f"--active: {hint} is required, or --config: the name tells of experts, not how many of them a token uses"
        )
    return f"--params: {hint} is required, or --config: neither the model's name nor a flag tells its size"


def _whole(workload: Workload, first: Candidate) -> Part:
    assert first.plan is not None
    return Part(first, first.plan, workload, 100, "")


def change(workload: Workload, **changes: Any) -> Workload:
    """The workload with other values, which must be valid ones."""
    return workload.model_copy(update=changes)


# Two deployments behind one name


def _two_parts(workload: Workload, ranking: Ranking) -> tuple[Part, Part] | None:
    """One deployment for the shared part, one for the rest; None where backends or GPUs do not suffice for two."""
    places = ranking.places
    vendor = workload.accelerator.vendor
    heavy = next((place for place in places if place.able.is_strong("prefix", vendor)), None)
    rest = next((place for place in places if not place.able.is_strong("prefix", vendor)), None)
    if heavy is None or rest is None or workload.concurrency < 2:
        return None
    share = workload.shared_requests
    here = min(max(1, round(workload.concurrency * share)), workload.concurrency - 1)
    shared = {"concurrency": here}
    rest_of_it = workload.concurrency - here
    plain = {"concurrency": rest_of_it, "shared_prefix": 0.0, "agentic": False, "structured": False}
    for gpus in _splits(workload.gpus, share):
        first = _part(workload, heavy, "prefix", round(100 * share), gpus=gpus, **shared)
        second = _part(workload, rest, "plain", 100 - round(100 * share), gpus=workload.gpus - gpus, **plain)
        if first and second:
            return first, second
    return None


def _splits(gpus: int, share: float) -> list[int]:
    """GPUs for the first of two parts: the fair number first, then those nearest to it."""
    return sorted(range(1, gpus), key=lambda n: abs(n - gpus * share))[:64]


def _part(workload: Workload, candidate: Candidate, role: str, weight: int, **changes: Any) -> Part | None:
    if (workload.tensor or 1) > changes["gpus"]:
        return None
    own = change(workload, mixed=False, **changes)
    assert own.shape is not None
    plan = find_plan(own, own.shape, candidate.able)
    return Part(candidate, plan, own, min(max(weight, 1), 99), role) if plan else None


# Refusals


def _refusal(workload: Workload, shape: Shape, ranking: Ranking) -> str:
    short = [each.able for each in ranking.excluded if each.lacks_memory and len(each.obstacles) == 1]
    slow = [each for each in ranking.excluded if each.lacks_memory and "--" in each.obstacles[-1]]
    if slow:
        reason = f"{slow[0].backend} {slow[0].obstacles[-1]}"
    elif short:
        # Of those that only lack memory, the arithmetic of the one that can use the most GPUs together.
        most = max(short, key=lambda able: max((each.gpus for each in layouts(workload, shape, able)), default=0))
        reason = shortfall(workload, shape, most)
    else:
        reason = "; ".join(f"{each.backend} {each.obstacles[0]}" for each in ranking.excluded)
    ways = " or ".join(_ways_out(workload))
    return f"{reason}; {f'try {ways}' if ways else 'no quantization and no 64 of these GPUs would change that'}"


_MORE_GPUS: Final = (2, 4, 8, 16, 32, 64)


def _ways_out(workload: Workload) -> Iterator[str]:
    """Flags with which the workload would be possible: another quantization, more GPUs, or both."""
    packed = workload.own_precision != "none"  # a checkpoint is what it is
    weights = [] if packed else [each for each in ("fp8", "awq") if each != workload.known_quantization]
    found = False
    for quantization in weights:
        if rank(change(workload, quantization=quantization)).places:
            found = True
            yield f"--quantization {quantization}"
            break
    for way in (*_enough_money(workload), *_other_layouts(workload)):
        found = True
        yield way
    few = max(8, 2 ** math.ceil(math.log2(min(workload.concurrency, 64))))
    if workload.sequences is None and rank(change(workload, sequences=few)).places:
        found = True
        yield f"--sequences {few}"
    gpus = [number for number in _MORE_GPUS if number > workload.gpus]
    if (number := _enough(workload, gpus)) is not None:
        found = True
        yield f"--gpus {number}"
    if not found:
        for quantization in weights:
            both = change(workload, quantization=quantization)
            if (number := _enough(both, gpus)) is not None:
                yield f"--quantization {quantization} --gpus {number}"
                return
        if workload.known_quantization != "none" and not packed and rank(change(workload, quantization="none")).places:
            yield "--quantization none"


def _enough_money(workload: Workload) -> Iterator[str]:
    price = workload.gpu_price
    if workload.budget is not None and price and (places := rank(change(workload, budget=None)).places):
        yield f"--budget {price * min(place.plan.gpus for place in places if place.plan):g}"


def _other_layouts(workload: Workload) -> Iterator[str]:
    """Another number in place of one that the model cannot be cut by: the nearest that it can."""
    for name in ("tensor", "pipeline", "data"):
        wanted = getattr(workload, name) or 1
        nearest = sorted((2**n for n in range(6)), key=lambda number: abs(number - wanted))
        for number in nearest if wanted > 1 else ():
            other = change(workload, **{name: number})
            if number != wanted and other.spread <= workload.gpus and rank(other).places:
                yield f"--{name} {number}"
                return


def _enough(workload: Workload, gpus: list[int]) -> int | None:
    return next((number for number in gpus if rank(change(workload, gpus=number)).places), None)


# Notes


def _notes(workload: Workload, shape: Shape, two: bool) -> Iterator[str]:
    if shape.estimated:
        close = models.close_to(workload.source) if workload.source else None
        exact = f"did you mean {close}? Else --config" if close and shape.hub is None else "--config"
        yield f"{shape.name}: its shape is estimated, with more KV cache than most; {exact} gives exact figures."
    if workload.mixed and two:
        yield "The traffic is mixed: two deployments serve one name, and the router finds out who gets what."
    if workload.mixed and not two:
        yield "The traffic is mixed, but backends or GPUs do not suffice for two deployments: one serves all of it."
    quantization = workload.known_quantization
    name = (workload.source or "").lower()
    if quantization in ("awq", "gptq") and quantization not in name:
        yield f"{quantization.upper()} needs weights that are {quantization.upper()} already: point --model at such."
    if workload.adapters:
        yield "Adapters have sources of their own: add them to spec.adapters."
    if workload.accelerator.generation == "turing":
        yield "A T4 knows no bfloat16: a checkpoint in it may need backend.args [--dtype, half]."
    if workload.rate is None and not workload.offline:
        yield "Replicas follow from the requests at once; --rate says how many there are a second."
    if workload.accelerator.vendor == "cpu" and workload.memory_gib is None:
        yield f"Machines of {workload.accelerator_gib:g} GiB are assumed: --memory-gib says what yours have."
    if (known := workload.measured) is None:
        yield "Speeds are ranges: most of what is measured lies within 1.5 times of their middle (docs/speed.md)."
    else:
        yield (
            f"Speeds are those measured of {known.model} with {known.concurrency:,} requests at once, "
            f"{known.prompt_tokens:,.0f} + {known.output_tokens:,.0f} tokens each, carried to this load."
        )
