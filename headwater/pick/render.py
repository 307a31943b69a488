"""A pick as ModelDeployments, and those as YAML that `kubectl apply -f -` and `headwater up` take.

Only fields that differ from their defaults are written, so that the file shows what was decided.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import yaml

from headwater.pick.capabilities import BUILD
from headwater.pick.choice import Part, Pick
from headwater.pick.contradictions import is_published
from headwater.pick.images import image, missing_image
from headwater.pick.memory import ALONE, running
from headwater.pick.reserve import CPU_GIB, GIB
from headwater.pick.workload import Workload, WorkloadError
from headwater.resource import API_VERSION, KIND

_LONGEST_NAME: Final = 36
"""Characters of a name that any ModelDeployment may have, also one whose replicas are spread over machines."""

_ENGINE_SEQUENCES: Final = 64
"""Requests that our engine computes at once by default."""
_ENGINE_BATCH: Final = 512
"""Tokens of its step by default, at least one for each request."""


def missing(pick: Pick) -> str | None:
    """What has to be said before the deployments can be written; None: nothing."""
    if pick.workload.source is None:
        return "--model: must say where the weights are, such as hf://OWNER/NAME: a size alone does not"
    if lack := _missing_weights(pick.workload):
        return lack
    return next((lack for part in pick.parts if (lack := missing_image(part.workload, part.candidate.backend))), None)


def _missing_weights(work: Workload) -> str | None:
    """Where a format was assumed that no server makes of what the source is known to hold."""
    wanted = work.known_quantization
    if wanted == "none" or work.online or work.own_precision != "none" or not is_published(work.source or ""):
        return None
    return f"--model: must say where weights in {wanted} are: {work.source} holds 16 bits, and no server packs them"


def deployments(pick: Pick) -> list[dict[str, Any]]:
    """One ModelDeployment for each part. Raises WorkloadError where something is `missing`."""
    if lack := missing(pick):
        raise WorkloadError(lack)
    return [_deployment(pick, part) for part in pick.parts]


def to_yaml(pick: Pick) -> str:
    """The ModelDeployments, each under a comment with its reason and its arithmetic. Raises WorkloadError."""
    documents = []
    for part, deployment in zip(pick.parts, deployments(pick), strict=True):
        lines = [f"{part.candidate.backend}: {part.candidate.reason}"]
        lines += [f"{what}: {how}" for what, how in part.arithmetic()]
        lines += pick.notes
        comment = "".join(f"# {line}\n" for line in lines)
        documents.append(comment + yaml.dump(deployment, Dumper=Dumper, sort_keys=False, allow_unicode=True))
    return "---\n".join(documents)


class Dumper(yaml.SafeDumper):
    """For kubectl's reader, too: what that takes for a number or a truth value, and PyYAML for a text, is in quotes."""


Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("[yYnN]$"), list("yYnN"))
Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"([-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|0o[0-7]+)$"), list("-+.0123456789")
)


def _deployment(pick: Pick, part: Part) -> dict[str, Any]:
    source = pick.workload.source
    assert source is not None
    name = _name(source, part.role)
    model: dict[str, Any] = {"source": source}
    if aliases := _aliases(source, part):
        model["aliases"] = aliases
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"model": model, "backend": _backend(part), **_size(part), **_rest(part)},
    }


def _name(source: str, role: str = "") -> str:
    """A name made of the source's last part; `role` sets apart those that share it."""
    last = re.split(r"[/:]", source.rstrip("/"))[-1]
    ending = f"-{role}" if role else ""
    slug = re.sub(r"[^a-z0-9]+", "-", last.lower())[: _LONGEST_NAME - len(ending)].strip("-")
    return (slug or "model") + ending


def _aliases(source: str, part: Part) -> list[str]:
    """The name that two parts share; and the model's own, which `transformers serve` answers to alone."""
    aliases = [_name(source)] if part.role else []
    if part.candidate.backend == "transformers" and source.startswith("hf://"):
        aliases.append(source.removeprefix("hf://"))
    return aliases


def _backend(part: Part) -> dict[str, Any]:
    workload, name = part.workload, part.candidate.backend
    backend: dict[str, Any] = {"type": name}
    backend |= image(workload, name)
    # On a CPU servers do not take what memory there is: they are told.
    gib = str(_cpu_cache_gib(part)) if workload.accelerator.vendor == "cpu" else None
    args = list(_args(part, gib))
    if name == "vllm" and gib:
        backend["env"] = {"VLLM_CPU_KVCACHE_SPACE": gib}
    return backend | ({"args": args} if args else {})


_SEQUENCES: Final = {
    "vllm": "--max-num-seqs",
    "sglang": "--max-running-requests",
    "tensorrt-llm": "--max_batch_size",
    "tgi": "--max-concurrent-requests",
}


def _args(part: Part, cpu_gib: str | None) -> Iterator[str]:
    name = part.candidate.backend
    if name == "headwater":
        yield from ["--kv-cache-gib", cpu_gib] if cpu_gib else []
        yield from _sequences(part)
    if part.workload.sequences and name in _SEQUENCES:
        yield from [_SEQUENCES[name], str(part.workload.sequences)]
    if name == "tensorrt-llm" and part.workload.build_time >= BUILD:
        yield from ["--backend", "tensorrt"]


def _cpu_cache_gib(part: Part) -> int:
    """Room for all requests that run at once, as far as there is so much; a whole number, at least 1."""
    plan, workload = part.plan, part.workload
    wanted = running(workload, plan.requests, plan.replicas) * workload.tokens * plan.kv_token_bytes / GIB
    return max(1, min(math.ceil(wanted), int(plan.kv_gib)))


def _sequences(part: Part) -> list[str]:
    wanted = part.workload.sequences or running(part.workload, part.plan.requests, part.plan.replicas)
    return ["--max-num-seqs", str(min(wanted, _ENGINE_BATCH))] if wanted > _ENGINE_SEQUENCES else []


def _size(part: Part) -> dict[str, Any]:
    plan, workload = part.plan, part.workload
    size: dict[str, Any] = {"replicas": plan.replicas}
    layout = {name: value for name, value in asdict(plan.layout).items() if value != getattr(ALONE, name)}
    if layout:
        size["parallelism"] = layout
    if (resource := workload.accelerator.resource) is not None:
        size["resources"] = {"limits": {resource: plan.layout.gpus // plan.layout.nodes}}
    else:
        memory = f"{math.ceil((plan.weights_gib + _cpu_cache_gib(part)) / plan.layout.nodes + CPU_GIB)}Gi"
        size["resources"] = {"requests": {"memory": memory}, "limits": {"memory": memory}}
    return size


def _rest(part: Part) -> dict[str, Any]:
    workload = part.workload
    rest: dict[str, Any] = {}
    if part.candidate.backend != "transformers":
        rest["context"] = {"maxTokens": _max_tokens(part)}
    if workload.online:  # what is quantized already says so itself; an explicit word would choose a slower kernel
        rest["quantization"] = workload.known_quantization
    cache: dict[str, Any] = {"fraction": workload.fraction} if workload.fraction else {}
    cache |= {"hostGiB": workload.host_cache_gib} if workload.host_cache_gib else {}
    cache |= {"dtype": workload.kv_dtype} if workload.kv_dtype != "auto" else {}
    if cache:
        rest["cache"] = cache
    if part.candidate.backend == "transformers" and str(workload.source).startswith("hf://"):
        rest["weights"] = {"cached": False}  # from a volume it would answer to no name but its own
    if workload.node_selector:
        rest["template"] = {"spec": {"nodeSelector": workload.node_selector}}
    if part.role:
        rest["routing"] = {"share": "Auto"}
    return rest


def _max_tokens(part: Part) -> int:
    """Twice a typical request, rounded up to a power of two, as far as model and cache go.

    Without it a server plans for the model's longest request, and may not start where the cache cannot hold one.
    """
    shape = part.workload.shape
    assert shape is not None
    wanted: int = 2 ** math.ceil(math.log2(2 * part.workload.tokens))
    return min(wanted, shape.positions or wanted, part.plan.kv_tokens)
