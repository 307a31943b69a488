"""Flags that are right one by one and wrong together, or for the model at hand: each is one sentence."""

from collections.abc import Iterator

from headwater.pick import models
from headwater.pick.hardware import UNKNOWN
from headwater.pick.precision import precision_in
from headwater.pick.shape import Shape
from headwater.pick.workload import Workload


def contradiction(workload: Workload, shape: Shape) -> str | None:
    """The first, which begins with the flag to change; None: there is none."""
    return next((said for found in (_of_model, _of_hardware, _of_traffic) for said in found(workload, shape)), None)


def _of_model(workload: Workload, shape: Shape) -> Iterator[str]:
    if (full := workload.full_layers) and full > shape.layers:
        yield f"--full-layers: must be at most all layers, which are {shape.layers:,}; found {full:,}"
    if workload.window and not workload.full_layers:
        yield "--window: needs --full-layers, the layers that keep all tokens"
    if workload.kv_heads and workload.heads and workload.kv_heads > workload.heads:
        yield f"--kv-heads: must be at most --heads, which is {workload.heads:,}; found {workload.kv_heads:,}"
    if shape.active > shape.parameters:
        yield "--active: must be at most --params: it is the part of them that computes one token"
    if workload.expert and not shape.experts:
        yield f"--expert: {shape.name} has no experts to spread"
    own, said = workload.own_precision, workload.quantization
    if said is not None and said != own != "none" and _is_sure(workload):
        yield f"--quantization: {shape.name} is a checkpoint in {own} already, and no server makes {said} of it"


def _is_sure(workload: Workload) -> bool:
    """Whether it is known how this very checkpoint holds its weights, not only how another of its model does."""
    source = workload.source or ""
    return workload.read is not None or precision_in(source) is not None or is_published(source)


def is_published(source: str) -> bool:
    """Whether a source is the repository itself that the catalog describes."""
    known = models.named(source)
    return bool(known and known.hub and source.lower() == f"hf://{known.hub}".lower())


def _of_hardware(workload: Workload, _: Shape) -> Iterator[str]:
    accelerator = workload.accelerator
    if accelerator.name in UNKNOWN and workload.memory_gib is None:
        yield f"--memory-gib: is required: {accelerator.title} may be any"
    if accelerator.name in UNKNOWN and not (workload.bandwidth and workload.flops):
        missing = "--flops" if workload.bandwidth else "--bandwidth"
        yield f"{missing}: is required: {accelerator.title} may be any"


def _of_traffic(workload: Workload, _: Shape) -> Iterator[str]:
    for flag in ("rate", "ttft", "tpot"):
        if workload.offline and getattr(workload, flag) is not None:
            yield f"--{flag}: is for requests that somebody waits for, and with --offline nobody does"
