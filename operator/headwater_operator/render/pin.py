"""What is fixed for a revision of a deployment, so that a new operator restarts no engine.

A pod template follows from the spec and a Pin: which version of the renderer makes it, for which backend, with which
image. The pin is kept on the workload. While the spec's pods stay the same, so does the pin, whatever newer operators
would choose; the next change of the spec adopts what they would.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from headwater import backends
from headwater.backends.base import Backend
from headwater.resource import ModelDeployment, Spec
from headwater_operator.config import KVEvents

PIN_ANNOTATION: Final = "headwater.dev/pin"
SPEC_HASH_ANNOTATION: Final = "headwater.dev/spec-hash"
CURRENT_RENDER_VERSION: Final = 5
_BUILD_VERSIONS: Final = {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
"""By render version, which rules engines of TensorRT-LLM are built by: half an hour of a GPU for each new one."""

_NOT_OF_PODS: Final = {"replicas", "autoscaling", "routing", "rollout", "weights"}
_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Pin:
    render_version: int
    backend: str
    """Resolved: never "auto"."""
    image: str
    kv_events: bool = True
    """Whether the server publishes KV events, if it can. In render version 1 all did."""

    @property
    def publishes_kv_events(self) -> bool:
        return self.kv_events and backends.get(self.backend).publishes_kv_events

    @property
    def repeats_kv_events(self) -> bool:
        """Whether the server is told to repeat KV events for those who ask."""
        return self.render_version > 3 and self.publishes_kv_events and backends.get(self.backend).repeats_kv_events

    @property
    def shows_views(self) -> bool:
        """Whether a server gets a view of a folder that it would not read rightly."""
        return self.render_version > 4

    @property
    def asks_for_admin_key(self) -> bool:
        """Whether the server takes adapters and the like only from who has its key."""
        return self.render_version > 1 and backends.get(self.backend).takes_admin_key

    def to_json(self) -> str:
        told = asdict(self)
        if self.kv_events:
            del told["kv_events"]  # so that pins from before there was a choice, and the revisions of them, stay
        return json.dumps(told, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Pin":
        """Raises ValueError for what is no pin."""
        match json.loads(text):
            case {"render_version": int(version), "backend": str(backend), "image": str(image), **others}:
                return cls(version, backend, image, others.get("kv_events") is not False)
        raise ValueError(f"not a pin: {text}")


def wanted_pin(deployment: ModelDeployment, backend: str, engine_image: str, kv_events: KVEvents) -> Pin:
    """What this operator chooses for a new revision. Raises UnsupportedError where the image must be named.

    `backend`: resolved. `engine_image`: of our own engine.
    """
    server = backends.get(backend)
    # Routers follow them for this policy alone; to anybody else they would only tell what is in the prompts.
    publishes = server.publishes_kv_events and kv_events == "prefix" == deployment.spec.routing.policy
    return Pin(CURRENT_RENDER_VERSION, backend, _image(deployment, server, engine_image), publishes)


def pinned(notes: Mapping[str, str], spec_hash: str) -> Pin | None:
    """The pin in a workload's annotations, if it was made for this very spec and nobody has damaged it."""
    if notes.get(SPEC_HASH_ANNOTATION) != spec_hash:
        return None
    try:
        return Pin.from_json(notes[PIN_ANNOTATION])
    except (KeyError, ValueError):
        return None


def spec_hash(spec: Spec) -> str:
    """Of all that shapes the pods. A field left at its default does not count: it may be newer than the workload."""
    shaping = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=_NOT_OF_PODS)
    if not spec.weights.cached:
        shaping["weights"] = {"cached": False}
    if spec.adapters and not _named_at_start(spec):
        shaping["adapters"] = True  # which ones does not matter to the pods: they are loaded and unloaded as they run
    return _digest(shaping)


def revision(deployment: ModelDeployment, pin: Pin) -> str:
    """Names a state of the pods. The resource's name is in it, since names made of both may be cut short."""
    return _digest([deployment.name, spec_hash(deployment.spec), pin.to_json()])


def build_revision(deployment: ModelDeployment, pin: Pin) -> str:
    """Names a TensorRT-LLM engine: of what shapes it, and no more, so that other changes build nothing."""
    spec = deployment.spec
    shaping = [
        spec.model.source,
        spec.model.revision,
        spec.parallelism.tensor,
        spec.context.max_tokens,
        spec.quantization,
        pin.image,
        _BUILD_VERSIONS.get(pin.render_version, pin.render_version),
    ]
    return _digest(shaping)


def _named_at_start(spec: Spec) -> bool:
    # "auto" stands for a backend that does not, whichever that is in the end.
    return backends.get(spec.backend.type).loads_adapters == "start"


def _image(deployment: ModelDeployment, backend: Backend, engine_image: str) -> str:
    wanted = deployment.spec.backend
    image = wanted.image or (engine_image if backend.name == "headwater" else backend.image)
    if image is None:
        raise backend.unsupported(deployment, "spec.backend.image", f"has no default image: {backend.image_hint}")
    if wanted.version is None:
        return image
    if "@" in image:
        raise backend.unsupported(deployment, "spec.backend.version", "has an image with a digest: give one of the two")
    return f"{_without_tag(image)}:{wanted.version}"


def _without_tag(image: str) -> str:
    folder, slash, name = image.rpartition("/")
    return folder + slash + name.partition(":")[0]  # a colon further left is a registry's port


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]
