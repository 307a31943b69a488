"""What rendering needs to know beside the resource, and the metadata of whatever is rendered."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from headwater import backends
from headwater.backends.base import Backend
from headwater.kubernetes import LABEL_COMPONENT, LABEL_DEPLOYMENT, LABEL_MANAGED_BY, MANAGED_BY
from headwater.resource import API_VERSION, KIND, ModelDeployment
from headwater_operator.config import OperatorSettings
from headwater_operator.render.pin import Defaults, Pin

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one, as in its YAML."""


@dataclass(frozen=True, slots=True)
class WeightsVolume:
    """A claim that holds the weights."""

    claim: str
    path: str
    """Folder of the model, within MODELS, where the claim is mounted."""
    read_only: bool = False
    """Whether the volume itself is, so that many nodes can have it."""


@dataclass(frozen=True, slots=True)
class ClaimDefaults:
    """For a volume of which the resource does not say how it shall be."""

    size: str = "100Gi"
    storage_class: str | None = None
    """None: the cluster's own."""
    access_mode: Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"] = "ReadWriteOnce"

    @classmethod
    def of(cls, settings: OperatorSettings) -> "ClaimDefaults":
        return cls(settings.weights_size, settings.weights_storage_class, settings.weights_access_mode)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to engines: elements of a NetworkPolicy's `ingress.from`."""

    routers: Sequence[Manifest]
    clients: Sequence[Manifest]
    """Others, to the port that they serve at."""

    @classmethod
    def of(cls, settings: OperatorSettings) -> "Access | None":
        """None: nobody is kept out."""
        return cls(settings.engine_routers, settings.engine_clients) if settings.engine_routers else None


@dataclass(frozen=True, slots=True)
class Inherited:
    """Keys of labels and annotations that a resource hands on to the objects that are made for it."""

    labels: Sequence[str] = ()
    annotations: Sequence[str] = ()

    @classmethod
    def of(cls, settings: OperatorSettings) -> "Inherited":
        return cls(settings.inherited_labels, settings.inherited_annotations)

    def apply(self, deployment: ModelDeployment, metadata: Manifest) -> Manifest:
        """The metadata with them; what is there already wins. None stands for one that the resource does not have: it
        has to go from the object, too.
        """
        given = {"labels": (self.labels, deployment.metadata.labels)}
        given["annotations"] = (self.annotations, deployment.metadata.annotations)
        parts = {
            part: {key: known.get(key) for key in keys} | metadata.get(part, {})
            for part, (keys, known) in given.items()
        }
        return metadata | {part: values for part, values in parts.items() if values}


@dataclass(frozen=True, slots=True)
class Context:
    namespace: str
    uid: str
    """Of the ModelDeployment."""
    pin: Pin
    weights: WeightsVolume | None
    """None: the pods have them by other means."""
    build_claim: str | None
    """The claim that holds TensorRT-LLM's finished engine."""
    strategy: Literal["Surge", "Replace"]
    replicas: int | None
    """None: somebody else counts them; the field is left out."""
    paused: bool
    claims: ClaimDefaults = field(default_factory=ClaimDefaults)
    access: Access | None = None
    inherited: Inherited = field(default_factory=Inherited)

    @property
    def backend(self) -> Backend:
        return backends.get(self.pin.backend)

    @property
    def defaults(self) -> Defaults:
        return Defaults.pinned(self.pin.defaults)


def labels(deployment: ModelDeployment, component: str) -> dict[str, str]:
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_COMPONENT: component,
        LABEL_DEPLOYMENT: deployment.name,
    }


def metadata(deployment: ModelDeployment, context: Context, name: str, component: str) -> Manifest:
    """Name, labels and owner: what goes when the ModelDeployment goes."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": deployment.name,
        "uid": context.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    own = {
        "name": name,
        "namespace": context.namespace,
        "labels": labels(deployment, component),
        "ownerReferences": [owner],
    }
    return context.inherited.apply(deployment, own)
