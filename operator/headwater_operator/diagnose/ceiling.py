"""The most pods that the platform allows one ModelDeployment, whatever it asks for: its replicas, times their nodes.

The chart has the API server refuse what is above it. What gets past that, or was there before, is told of and carried
out as far as it may be.
"""

from headwater.resource import Autoscaling, Spec
from headwater_operator.diagnose.pods import Problem


def most_replicas(spec: Spec, most_pods: int) -> int:
    """Whole ones: part of a group serves nothing."""
    return most_pods // spec.parallelism.nodes


def capped(rule: Autoscaling, most: int) -> Autoscaling:
    return rule.model_copy(update={"min": min(rule.min, most), "max": min(rule.max, most)})


def beyond(spec: Spec, most_pods: int) -> Problem | None:
    field, asked = ("autoscaling.max", spec.autoscaling.max) if spec.autoscaling else ("replicas", spec.first_replicas)
    most, nodes = most_replicas(spec, most_pods), spec.parallelism.nodes
    if asked <= most:
        return None
    pods = f" of {nodes} pods each" if nodes > 1 else ""
    return Problem(
        "ReplicasCapped",
        f"spec.{field}: {asked}{pods} are more than the {most_pods} pods that the platform allows one ModelDeployment "
        f"(--max-replicas, operator.maxReplicas of the chart); there will be {most} at most",
    )
