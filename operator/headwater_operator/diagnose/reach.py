"""Replicas that a volume of one node does not reach.

A volume with ReadWriteOnce is attached to one node, and all pods that mount it have to be there. The scheduler knows
nothing of that: a pod elsewhere hangs before its containers start, for as long as one of the others runs.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from headwater_operator.diagnose.pods import EnginePod, Problem

_PATIENCE: Final = 60.0
"""Seconds that a pod may take to get its volumes, or a place: most get them at once."""
_ELSEWHERE: Final = "volume node affinity conflict"
"""Words of the scheduler where a volume is not in reach of any node that a pod may be on."""
_APART: Final = "pod affinity rules"
_ADVICE: Final = (
    "Delete the PersistentVolumeClaim and set spec.weights.accessMode to ReadWriteMany, if a StorageClass offers it; "
    "or have fewer replicas; or spec.weights.cached: false"
)


def problem(claim: str, pods: Sequence[EnginePod], revision: str, now: datetime) -> tuple[Problem | None, float | None]:
    """What is wrong; else in how many seconds it may be. `pods`: all that mount the volume, for one deployment."""
    there = {pod.node for pod in pods if pod.node and (pod.running or pod.restarts)}
    late = [pod for pod in pods if not pod.terminating and (words := _stuck(pod, there)) and words]
    if not late:
        return None, None
    rolling = any(pod.revision != revision and not pod.terminating for pod in pods)
    first = min(late, key=lambda pod: pod.created)
    left = _PATIENCE - (now - first.created).total_seconds()
    if left > 0:
        return None, left
    if rolling and first.unschedulable and _APART in first.unschedulable:
        return None, None  # the rollout goes on by Replace
    text = f"pod {first.name} cannot run beside the others: {_stuck(first, there)}. The volume {claim} is ReadWriteOnce"
    return Problem("VolumeReachesOneNode", f"{text}, which reaches one node. {_ADVICE}"), None


def _stuck(pod: EnginePod, there: set[str]) -> str:
    """Why a pod does not start that only the volume holds back; nothing if it does, or something else does."""
    if pod.unschedulable is not None:
        said = pod.unschedulable
        return said if _ELSEWHERE in said or (_APART in said and there) else ""
    if pod.running or pod.restarts or not pod.node or not there or pod.node in there:
        return ""
    return f"it is on node {pod.node}, they are on {', '.join(sorted(there))}"
