"""What a pod mounts: scratch space, shared memory, the weights, small files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headwater.backends.base import FILES
from headwater.kubernetes import GROUP
from headwater.resource import ModelDeployment, Weights
from headwater_operator.render.context import ClaimDefaults, Context, Manifest, WeightsVolume

HOME: Final = "/home/headwater"
HUB_CACHE: Final = f"{HOME}/.cache/huggingface"
MODELS: Final = "/models"
"""Where the claim of the weights is mounted."""
ENGINE: Final = "/engine"
"""Where TensorRT-LLM's engine is mounted."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume and where the container has it."""

    name: str
    source: Manifest
    path: str
    read_only: bool = False
    part: str = ""
    """Folder of the volume; empty: all of it."""

    @property
    def volume_mount(self) -> Manifest:
        mount: Manifest = {"name": self.name, "mountPath": self.path}
        if self.part:
            mount["subPath"] = self.part
        return mount | ({"readOnly": True} if self.read_only else {})


def volumes(mounts: Sequence[Mount]) -> list[Manifest]:
    """Each once, however often it is mounted."""
    sources = {mount.name: mount.source for mount in mounts}
    return [{"name": name, **source} for name, source in sources.items()]


def weights(deployment: ModelDeployment, context: Context) -> WeightsVolume | None:
    """The claim that holds the weights: the operator's own, or that of a pvc:// source."""
    source = deployment.spec.model.source
    if context.weights is None and source.startswith("pvc://"):
        claim, _, path = source.removeprefix("pvc://").partition("/")
        return WeightsVolume(claim, f"{MODELS}/{path}".rstrip("/"))
    return context.weights


def scratch() -> list[Mount]:
    """All that a server may write to; the root file system is read-only."""
    return [Mount("tmp", {"emptyDir": {}}, "/tmp"), Mount("home", {"emptyDir": {}}, HOME)]


def shared_memory(accelerators: int) -> Mount:
    """For what processes of one pod pass on to one another. A runtime's own 64 MiB are too few for NCCL.

    The size is a bound: what is not written takes no memory.
    """
    return Mount("shm", {"emptyDir": {"medium": "Memory", "sizeLimit": f"{2 * max(accelerators, 1)}Gi"}}, "/dev/shm")


def claim(name: str, claim_name: str, path: str, *, read_only: bool = True) -> Mount:
    return Mount(name, {"persistentVolumeClaim": {"claimName": claim_name}}, path, read_only)


def weights_claim(weights: WeightsVolume) -> Mount:
    return Mount("weights", _source(weights), MODELS, read_only=True)


def _source(weights: WeightsVolume) -> Manifest:
    return {"persistentVolumeClaim": {"claimName": weights.claim} | ({"readOnly": True} if weights.read_only else {})}


def model_folder(weights: WeightsVolume, path: str) -> Mount:
    """The model's own folder once more, under a path of the server's choice."""
    part = weights.path.removeprefix(MODELS).strip("/")
    return Mount("weights", _source(weights), path, read_only=True, part=part)


def files(names: Mapping[str, str]) -> list[Mount]:
    """Small files out of the pod's own annotations, so that its template says all and needs no ConfigMap beside it."""
    if not names:
        return []
    items = [
        {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{_annotation(name)}']"}} for name in names
    ]
    return [Mount("files", {"downwardAPI": {"items": items}}, FILES, read_only=True)]


def file_annotations(contents: Mapping[str, str]) -> dict[str, str]:
    return {_annotation(name): content for name, content in contents.items()}


def _annotation(file: str) -> str:
    return f"files.{GROUP}/{file}"


def claim_spec(wanted: Weights, defaults: ClaimDefaults) -> Manifest:
    """Of a PersistentVolumeClaim, as the resource wants it and else as the operator's settings say."""
    mode = wanted.access_mode or defaults.access_mode
    spec: Manifest = {
        "accessModes": ["ReadWriteOnce" if mode == "ReadOnlyMany" else mode],  # somebody has to write it first
        "resources": {"requests": {"storage": wanted.size or defaults.size}},
    }
    if storage_class := wanted.storage_class_name or defaults.storage_class:
        spec["storageClassName"] = storage_class
    return spec
