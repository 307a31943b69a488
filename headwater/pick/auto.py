"""What `spec.backend.type: auto` means for one ModelDeployment: the first backend of the same ranking as `pick`'s.

A resource says less than a workload does: not which GPUs a cluster has, nor what requests are like. So no backend is
excluded for its memory, and traffic is taken for plain unless the resource shows otherwise: a host cache is for
prefixes that come again, the `session` policy for conversations. The `prefix` policy says nothing, being the default.
"""

from typing import Any, Final

from headwater import quantities
from headwater.pick.capabilities import BackendName
from headwater.pick.ranking import HEAVY_SHARE, HEAVY_TOKENS, loads, rank
from headwater.pick.workload import MAX_GPUS, Workload
from headwater.resource import ModelDeployment, Parallelism, Sampling, Spec

_GPUS: Final = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd"}


def resolve_auto(deployment: ModelDeployment) -> BackendName:
    """The backend for a resource that leaves the choice to us. Pure, and there is always one.

    Where none supports all that the resource asks for, it is the one that lacks least; its refusal then says what.
    """
    workload = workload_of(deployment)
    ranking = rank(workload, sized=False)
    if ranking.places:
        return ranking.places[0].backend
    # A backend that cannot load the weights is of no use, whatever else it can do.
    return min(ranking.excluded, key=lambda each: (not loads(workload, each.able), len(each.obstacles))).backend


def workload_of(deployment: ModelDeployment) -> Workload:
    """What a resource says of its workload."""
    spec = deployment.spec
    vendor, gpus = _accelerators(spec)
    wanted = spec.parallelism
    if wanted.accelerators > MAX_GPUS:  # more than any workload has; what counts is which of them are several
        wanted = Parallelism(
            **{name: min(getattr(wanted, name), 2) for name in ("tensor", "pipeline", "data", "nodes")}
        )
    comes_again = spec.cache.host_gib > 0
    return Workload(
        model=spec.model.source,
        gpu=vendor,
        gpus=min(max(gpus, wanted.accelerators), MAX_GPUS),
        quantization=spec.quantization,
        adapters=len(spec.adapters),
        tensor=wanted.tensor,
        pipeline=wanted.pipeline,
        data=wanted.data,
        expert=spec.parallelism.expert,
        host_cache_gib=spec.cache.host_gib,
        input_tokens=max(1000, round(HEAVY_TOKENS / HEAVY_SHARE)),
        shared_prefix=HEAVY_SHARE if comes_again else 0.0,
        agentic=spec.routing.policy == "session",
        sampling=spec.sampling != Sampling(),
        nodes=wanted.nodes,
    )


def _accelerators(spec: Spec) -> tuple[str, int]:
    """Whose, and how many a container gets; ("cpu", 1) where it gets none."""
    for kind in ("limits", "requests"):
        given = spec.resources.get(kind)
        for resource, vendor in _GPUS.items():
            if isinstance(given, dict) and resource in given:
                count = _count(given[resource])
                return (vendor, count) if count else ("cpu", 1)
    # Layers are shared between GPUs only, so a resource that wants that means some, if only in its template.
    return ("nvidia", spec.parallelism.accelerators) if spec.parallelism.accelerators > 1 else ("cpu", 1)


def _count(quantity: Any) -> int:
    """Of a Kubernetes quantity; one where it cannot be read, since something was asked for."""
    try:
        return int(quantities.parse(quantity))
    except ValueError:
        return 1
