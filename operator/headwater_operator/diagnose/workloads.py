"""Replicas that do not come about, or not in time: what a Deployment says of itself, and what is said of a group."""

from collections.abc import Sequence

from headwater_operator.cluster.kinds import Object
from headwater_operator.diagnose.pods import EnginePod, Problem


def of_workload(workload: Object, pods: Sequence[EnginePod]) -> Problem | None:
    """What the Deployment's controller says of pods that are not there, or not ready. `pods`: of this revision."""
    for condition in (workload.get("status") or {}).get("conditions") or []:
        match condition["type"], condition["status"], condition.get("reason"):
            case "ReplicaFailure", "True", _:
                return Problem("PodsRefused", f"the API server takes no pods: {condition.get('message')}")
            case "Progressing", "False", "ProgressDeadlineExceeded":
                return too_late(pods)
    return None


def too_late(pods: Sequence[EnginePod]) -> Problem:
    """Of a replica that has had its time and more. `pods`: those that it may be about."""
    if unplaced := next((pod for pod in pods if pod.unschedulable), None):
        return Problem("Unschedulable", f"no node takes pod {unplaced.name}: {unplaced.unschedulable}")
    return Problem(
        "LoadTimeout",
        "no new replica got ready within spec.loadTimeout; the old ones go on. kubectl logs of the new "
        "pods shows what they do; raise loadTimeout if they only need longer",
    )
