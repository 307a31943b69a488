"""Which backend for a workload: a few rules, of which the first that names a backend decides its place.

A backend that cannot serve the workload at all has no place, only obstacles. The others are ordered by the first rule
that speaks for them; within a rule, by the order of the capability table. So each place has one reason, and a change of
the workload moves a backend only by switching a rule on or off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from headwater.pick import models
from headwater.pick.capabilities import BUILD, CAPABILITIES, BackendName, Capability, Strength
from headwater.pick.hardware import Vendor
from headwater.pick.layout import shares_layers
from headwater.pick.memory import Plan
from headwater.pick.sizing import find_plan, lack
from headwater.pick.workload import Workload

HEAVY_SHARE: Final = 0.5
HEAVY_TOKENS: Final = 256
"""From this share of the prompt on, and this many tokens, prefixes decide what is fast."""


@dataclass(frozen=True, slots=True)
class Candidate:
    backend: BackendName
    reason: str
    """Why it has its place: a sentence."""
    plan: Plan | None
    """None where the memory of the accelerators is not known."""
    able: Capability


@dataclass(frozen=True, slots=True)
class Excluded:
    backend: BackendName
    obstacles: tuple[str, ...]
    """Each says what the backend cannot do, after its name: "runs on CPUs only, not on an H100"."""
    able: Capability
    lacks_memory: bool
    """Whether the last obstacle is the memory of the accelerators."""


@dataclass(frozen=True, slots=True)
class Ranking:
    places: tuple[Candidate, ...]
    """The best first."""
    excluded: tuple[Excluded, ...]
    """In the same order, as if they could."""


def prefix_heavy(workload: Workload) -> bool:
    return workload.shared_prefix >= HEAVY_SHARE and workload.shared_tokens >= HEAVY_TOKENS


# Why


def _breadth(_: Workload) -> str:
    return (
        "It runs every architecture of the transformers library on the day it appears; "
        "expect fewer tokens a second than from any other server."
    )


def _prefix(workload: Workload) -> str:
    reasons = []
    if prefix_heavy(workload):
        left = workload.input_tokens - workload.shared_tokens
        less = f": {workload.input_tokens / left:.1f} times less prefill" if left else ""
        reasons.append(
            f"{workload.shared_prefix:.0%} of the prompt is shared, so its radix cache skips "
            f"{workload.shared_tokens:,} of {workload.input_tokens:,} tokens in each request{less}"
        )
    if workload.agentic:
        reasons.append("each turn of an agent finds the conversation so far in its radix cache")
    if workload.structured:
        reasons.append("it skips over the tokens that a schema leaves no choice for")
    if workload.mixed:
        reasons.append(f"it takes the {workload.shared_requests:.0%} of requests that are like that")
    text = "; ".join(reasons)
    return f"{text[0].upper()}{text[1:]}."


def _hugging_face(_: Workload) -> str:
    return (
        "It is Hugging Face's own server, with the operations you have; upstream only maintains it now, "
        "so plan for vLLM or SGLang."
    )


def _peak(workload: Workload) -> str:
    return (
        f"Its kernels get the most out of {workload.accelerator.title} GPUs, and a build of {_minutes(BUILD)} minutes "
        f"is within your {_minutes(workload.build_time)}; each new model or shape is built again."
    )


def _cpu(_: Workload) -> str:
    return (
        "Our engine is made for CPUs: 1.38 to 2.24 times the tokens a second of vLLM's CPU build, measured in "
        "docs/performance.md; `headwater up` runs the same."
    )


def _default(workload: Workload) -> str:
    where = "on any GPU" if workload.accelerator.vendor != "cpu" else "also on CPUs"
    return f"The boring default: the most models, quantizations and users, {where}, and nothing to build."


@dataclass(frozen=True, slots=True)
class Rule:
    strength: Strength
    """Speaks for the backends that have it."""
    applies: Callable[[Workload], bool]
    why: Callable[[Workload], str]


RULES: Final = (
    Rule("breadth", lambda workload: workload.broad_models, _breadth),
    Rule("prefix", lambda w: prefix_heavy(w) or w.agentic or w.structured or w.mixed, _prefix),
    Rule("hugging face", lambda workload: workload.hugging_face, _hugging_face),
    Rule("peak", lambda workload: workload.build_time >= BUILD, _peak),
    Rule("cpu", lambda workload: workload.accelerator.vendor == "cpu", _cpu),
    Rule("default", lambda workload: True, _default),
)


def _otherwise(workload: Workload, able: Capability) -> str:
    match able.backend:
        case "sglang":
            return (
                f"As able as vLLM, and first from a shared prefix of {HEAVY_SHARE:.0%} and {HEAVY_TOKENS} tokens on; "
                f"here {workload.shared_tokens:,} of {workload.input_tokens:,} are."
            )
        case "tensorrt-llm":
            return (
                "Its PyTorch backend needs no build, and is fast on Hopper and Blackwell; fewer models and features "
                "than vLLM, and an image that has to be named."
            )
        case "tgi":
            return (
                "It serves this as well, but upstream only maintains it: new models and kernels come elsewhere first."
            )
        case "headwater":
            return "Our own engine: young on GPUs, so compare it under your load first."
        case "transformers":
            return "It works, with the fewest tokens a second: for models that none of the others knows."
        case _:
            return "It serves this as well; no rule speaks for it."


# What cannot be

_VENDORS: Final[dict[Vendor, str]] = {
    "nvidia": "NVIDIA GPUs",
    "amd": "AMD GPUs",
    "cpu": "CPUs",
    "intel": "Intel GPUs",
    "gaudi": "Gaudi",
    "tpu": "TPUs",
}


def obstacles(workload: Workload, able: Capability) -> Iterator[str]:
    """What the backend lacks for the workload, memory apart."""
    accelerator = workload.accelerator
    if accelerator.vendor not in able.quantizations:
        yield f"runs on {' and '.join(_VENDORS[each] for each in able.quantizations)} only"
    elif workload.known_quantization not in {"none", *able.quantizations[accelerator.vendor]}:
        yield f"serves no {workload.known_quantization} weights on {accelerator.title}"
    elif able.generations and accelerator.vendor != "cpu" and accelerator.generation not in (None, *able.generations):
        *others, last = (each.title() for each in able.generations)
        own = str(accelerator.generation).title()
        yield f"is deployed on {', '.join(others)} and {last} GPUs only; {accelerator.title} is {own}"
    if workload.online and workload.known_quantization not in able.online:
        yield f"makes no {workload.known_quantization} of weights in 16 bits: it takes a checkpoint that is so already"
    if workload.kv_dtype == "fp8" and not able.keeps_fp8(accelerator):
        yield f"keeps no KV cache in FP8{f' on {accelerator.title}' if able.kv_fp8 else ''}"
    yield from _traffic_obstacles(workload, able)
    yield from _model_obstacles(workload, able)


def _minutes(duration: timedelta) -> str:
    return f"{duration.total_seconds() / 60:g}"


def _traffic_obstacles(workload: Workload, able: Capability) -> Iterator[str]:
    if workload.adapters and not able.adapters:
        yield "serves no LoRA adapters"
    if workload.structured and not able.structured:
        yield "holds no answer to a schema"
    if workload.sampling and not able.sampling:
        yield "takes no defaults for sampling"
    if workload.host_cache_gib and not able.host_cache:
        yield "keeps no KV cache in host memory"
    if (workload.tensor or 1) > 1 and not shares_layers(workload, able):
        yield f"shares no layer between devices, and --tensor is {workload.tensor}"
    elif workload.spread > 1 and not shares_layers(workload, able):
        yield f"spreads no model over devices, and {workload.spread} are to have one"
    if workload.pipeline > 1 and not able.pipeline:
        yield f"cuts no model into stages, and --pipeline is {workload.pipeline}"
    if workload.data > 1 and not able.data:
        yield f"computes no attention apart, and --data is {workload.data}"
    if workload.data > 1 and (workload.tensor or 1) > 1 and able.backend == "tensorrt-llm":
        yield "computes attention apart on single GPUs alone"
    if workload.expert and not able.experts:
        yield "spreads no experts whole"
    if (workload.nodes or 1) > 1 and not able.nodes:
        yield f"spreads no replica over machines, and --nodes is {workload.nodes}"


def _model_obstacles(workload: Workload, able: Capability) -> Iterator[str]:
    family = workload.known_family
    if family and able.families is not None and family not in able.families:
        yield f"has no code of its own for {family} models"
    if not able.vision and workload.source and (known := models.named(workload.source)) and known.vision:
        yield "runs no models that see"
    if not loads(workload, able):
        yield f"cannot load {workload.source}"


def loads(workload: Workload, able: Capability) -> bool:
    """Whether the backend can get at the weights: ours alone knows packages and made-up weights."""
    return able.packaged or not (workload.source or "").startswith(("package://", "random:"))


# The ranking


def rank(workload: Workload, *, sized: bool = True) -> Ranking:
    """All backends, in order. `sized`: whether a backend whose memory does not suffice is excluded."""
    places, excluded = [], []
    for able, rule in sorted(
        ((able, _first_rule(workload, able)) for able in CAPABILITIES),
        key=lambda pair: RULES.index(pair[1]) if pair[1] else len(RULES),
    ):
        found = list(obstacles(workload, able))
        plan, missing = _fit(workload, able) if sized else (None, None)
        if missing:
            found.append(missing)
        if found:
            excluded.append(Excluded(able.backend, tuple(found), able, missing is not None))
        else:
            reason = rule.why(workload) if rule else _otherwise(workload, able)
            places.append(Candidate(able.backend, reason, plan, able))
    return Ranking(tuple(places), tuple(excluded))


def _first_rule(workload: Workload, able: Capability) -> Rule | None:
    vendor = workload.accelerator.vendor
    return next((rule for rule in RULES if able.is_strong(rule.strength, vendor) and rule.applies(workload)), None)


def _fit(workload: Workload, able: Capability) -> tuple[Plan | None, str | None]:
    """A plan, or what is lacking; neither where sizes are not known or the device is none of the backend's."""
    shape = workload.shape
    if shape is None or workload.accelerator_gib is None or workload.accelerator.vendor not in able.quantizations:
        return None, None
    if workload.spread > 1 and not shares_layers(workload, able):
        return None, None  # an obstacle already
    if plan := find_plan(workload, shape, able):
        return plan, None
    return None, lack(workload, shape, able)
