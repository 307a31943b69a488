"""A pick as ModelDeployments, and those as YAML that `kubectl apply -f -` and `headwater up` take.

Only fields that differ from their defaults are written, so that the file shows what was decided.
"""

import math
import re
from typing import Any, Final

import yaml

from headwater.pick.choice import Part, Pick
from headwater.pick.memory import GIB, RESERVE_GIB, running
from headwater.pick.workload import WorkloadError
from headwater.resource import API_VERSION, KIND

_LONGEST_NAME: Final = 36
"""Characters of a name that any ModelDeployment may have, also one whose replicas are spread over machines."""

_ENGINE_SEQUENCES: Final = 64
"""Requests that our engine computes at once by default."""
_ENGINE_BATCH: Final = 512
"""Tokens of its step by default, at least one for each request."""


def deployments(pick: Pick) -> list[dict[str, Any]]:
    """One ModelDeployment for each part. Raises WorkloadError where the model has no source."""
    return [_deployment(pick, part) for part in pick.parts]


def to_yaml(pick: Pick) -> str:
    """The ModelDeployments, each under a comment with its reason and its arithmetic. Raises WorkloadError."""
    documents = []
    for part, deployment in zip(pick.parts, deployments(pick), strict=True):
        lines = [f"{part.candidate.backend}: {part.candidate.reason}"]
        lines += [f"{what}: {how}" for what, how in part.arithmetic()]
        lines += pick.notes
        comment = "".join(f"# {line}\n" for line in lines)
        documents.append(comment + yaml.safe_dump(deployment, sort_keys=False, allow_unicode=True))
    return "---\n".join(documents)


def _deployment(pick: Pick, part: Part) -> dict[str, Any]:
    source = pick.workload.source
    if source is None:
        raise WorkloadError("--model: must say where the weights are, such as hf://OWNER/NAME: a size alone does not")
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
    if part.candidate.backend == "transformers":
        aliases.append(re.sub(r"^(hf|file)://", "", source))
    return aliases


def _backend(part: Part) -> dict[str, Any]:
    backend: dict[str, Any] = {"type": part.candidate.backend}
    # On a CPU servers do not take what memory there is: they are told.
    gib = str(_cpu_cache_gib(part)) if part.workload.accelerator.vendor == "cpu" else None
    if part.candidate.backend == "headwater":
        args = [*(["--kv-cache-gib", gib] if gib else []), *_sequences(part)]
        backend |= {"args": args} if args else {}
    if part.candidate.backend == "vllm" and gib:
        backend["env"] = {"VLLM_CPU_KVCACHE_SPACE": gib}
    return backend


def _cpu_cache_gib(part: Part) -> int:
    """Room for all requests that run at once, as far as there is so much; a whole number, at least 1."""
    plan, workload = part.plan, part.workload
    wanted = running(workload, plan.requests, plan.replicas) * workload.tokens * plan.kv_token_bytes / GIB
    return max(1, min(math.ceil(wanted), int(plan.kv_gib)))


def _sequences(part: Part) -> list[str]:
    wanted = running(part.workload, part.plan.requests, part.plan.replicas)
    return ["--max-num-seqs", str(min(wanted, _ENGINE_BATCH))] if wanted > _ENGINE_SEQUENCES else []


def _size(part: Part) -> dict[str, Any]:
    plan, workload = part.plan, part.workload
    size: dict[str, Any] = {"replicas": plan.replicas}
    if plan.tensor > 1:
        size["parallelism"] = {"tensor": plan.tensor}
        if plan.nodes > 1:
            size["parallelism"]["nodes"] = plan.nodes
    if (resource := workload.accelerator.resource) is not None:
        size["resources"] = {"limits": {resource: plan.tensor // plan.nodes}}
    else:
        memory = f"{math.ceil((plan.weights_gib + _cpu_cache_gib(part)) / plan.nodes + RESERVE_GIB)}Gi"
        size["resources"] = {"requests": {"memory": memory}, "limits": {"memory": memory}}
    return size


def _rest(part: Part) -> dict[str, Any]:
    workload = part.workload
    rest: dict[str, Any] = {}
    if part.candidate.backend != "transformers":
        rest["context"] = {"maxTokens": _max_tokens(part)}
    if workload.known_quantization != "none":
        rest["quantization"] = workload.known_quantization
    if workload.host_cache_gib:
        rest["cache"] = {"hostGiB": workload.host_cache_gib}
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
