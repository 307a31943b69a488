"""NVIDIA GPUs of this machine, and which of them each replica of `headwater up` gets.

Servers take the first GPUs that they see, so two that see the same ones would take the same ones, and the second one
would find their memory full.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Final

from headwater.backends.base import Backend
from headwater.resource import ModelDeployment, ResourceError

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_DEVICE: Final = "HEADWATER_ENGINE_DEVICE"
_ASK: Final = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")


def visible_gpus() -> list[str]:
    """Those that CUDA_VISIBLE_DEVICES names, else all, by their numbers. None where there is no driver."""
    if (named := os.environ.get(VISIBLE)) is not None:
        return _named_in(named)
    try:
        said = subprocess.run(_ASK, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return said.stdout.split() if said.returncode == 0 else []


def _named_in(variable: str) -> list[str]:
    """CUDA ends the list at what is no GPU, such as -1."""
    return list(takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in variable.split(","))))


def share_out(replicas: Sequence[tuple[ModelDeployment, Backend]], gpus: Sequence[str]) -> list[Mapping[str, str]]:
    """Of each replica, variables by which it sees GPUs that no other one sees. Raises ResourceError.

    Without any GPUs all are left to what they find. What `spec.backend.env` says of GPUs stays, and those are no
    others'.
    """
    if not gpus:
        return [{}] * len(replicas)
    chosen = {name for each, _ in replicas for name in _named_in(each.spec.backend.env.get(VISIBLE, ""))}
    free = [name for name in gpus if name not in chosen]
    wanted = [_wanted(*each) for each in replicas]
    if sum(wanted) > len(free):
        raise ResourceError(_too_few(replicas, wanted, gpus, len(free)))
    numbers = iter(free)
    return [{VISIBLE: ",".join(next(numbers) for _ in range(count))} if count else {} for count in wanted]


def _wanted(deployment: ModelDeployment, backend: Backend) -> int:
    spec = deployment.spec
    args = " ".join(spec.backend.args).replace("=", " ")
    variables = {**os.environ, **spec.backend.env}
    on_cpu = "--device cpu" in args or (not backend.needs_gpu and variables.get(_DEVICE) == "cpu")
    return 0 if on_cpu or VISIBLE in spec.backend.env else spec.parallelism.accelerators


def _too_few(
    replicas: Sequence[tuple[ModelDeployment, Backend]], wanted: Sequence[int], gpus: Sequence[str], free: int
) -> str:
    counts: dict[str, list[int]] = {}
    for (deployment, _), count in zip(replicas, wanted, strict=True):
        counts.setdefault(deployment.name, []).append(count)
    sums = " + ".join(f"{len(each)} x {each[0]} ({name})" for name, each in counts.items() if each[0])
    taken = f", {len(gpus) - free} of them chosen in spec.backend.env" if free < len(gpus) else ""
    return (
        f"replicas take GPUs of their own, here {sums} = {sum(wanted)}, and this machine shows {len(gpus)} "
        f"({', '.join(gpus)}){taken}: lower spec.replicas or spec.parallelism, have some run on CPUs "
        f"(--device cpu in spec.backend.args), or let them share by naming GPUs in spec.backend.env ({VISIBLE})"
    )
