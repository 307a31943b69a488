"""The most replicas that the platform allows one ModelDeployment, whatever it asks for.

The chart has the API server refuse what is above it. What gets past that, or was there before, is told of and carried
out as far as it may be.
"""

from headwater.resource import Autoscaling, Spec
from headwater_operator.diagnose.pods import Problem


def capped(rule: Autoscaling, most: int) -> Autoscaling:
    return rule.model_copy(update={"min": min(rule.min, most), "max": min(rule.max, most)})


def beyond(spec: Spec, most: int) -> Problem | None:
    field, asked = ("autoscaling.max", spec.autoscaling.max) if spec.autoscaling else ("replicas", spec.first_replicas)
    if asked <= most:
        return None
    return Problem(
        "ReplicasCapped",
        f"spec.{field}: {asked} are more than the {most} that the platform allows one ModelDeployment "
        f"(--max-replicas, operator.maxReplicas of the chart); there will be {most} at most",
    )
