"""Names made of a deployment's and a revision, none longer than Kubernetes allows."""

from typing import Final

from headwater.kubernetes import workers_service
from headwater.resource import ModelDeployment
from headwater_operator.render.pin import Pin, build_revision, revision

_LONGEST_SET: Final = 63 - len("-0123456789")
"""Pods of a StatefulSet bear a label with its name and a hash behind it."""


def group_name(deployment: ModelDeployment, pin: Pin, number: int) -> str:
    """Of a group's StatefulSet. A long name is cut; the revision in it still tells it from others."""
    end = f"-{revision(deployment, pin)}-{number}"
    return deployment.name[: _LONGEST_SET - len(end)].rstrip("-") + end


def leader_address(deployment: ModelDeployment, pin: Pin, number: int, namespace: str) -> str:
    """Of rank 0, known before that is ready."""
    return f"{group_name(deployment, pin, number)}-0.{workers_service(deployment.name)}.{namespace}.svc"


def build_name(deployment: ModelDeployment, pin: Pin) -> str:
    """Of the Job that builds a TensorRT-LLM engine, and of the claim that keeps it."""
    return f"{deployment.name}-build-{build_revision(deployment, pin)}"
