"""What is fixed for a revision of a deployment, so that a new operator restarts no engine.

A pod template follows from the spec and a Pin: which version of the renderer makes it, for which backend, with which
image. The pin is kept on the workload. While the spec's pods stay the same, so does the pin, whatever newer operators
would choose; the next change of the spec adopts what they would.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Final

from headwater import backends
from headwater.backends.base import Backend
from headwater.resource import ModelDeployment, Spec
from headwater.values import is_digest
from headwater_operator.config import OperatorSettings

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
    one_node: bool = False
    """Whether all replicas are kept on one node, since a volume that they mount reaches no other one."""
    defaults: str = ""
    """What the platform gives to all pods, as JSON: see `Defaults`. Empty: nothing."""
    shared: str = ""
    """Claim and path of the weights, where the platform shares them among namespaces. Empty: it does not."""

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
        return _as_json(self)

    @classmethod
    def from_json(cls, text: str) -> "Pin":
        """Raises ValueError for what is no pin."""
        match json.loads(text):
            case {"render_version": int(version), "backend": str(backend), "image": str(image), **others}:
                defaults = str(others.get("defaults") or "")
                Defaults.pinned(defaults)
                events, one_node = others.get("kv_events") is not False, others.get("one_node") is True
                return cls(version, backend, image, events, one_node, defaults, str(others.get("shared") or ""))
        raise ValueError(f"not a pin: {text}")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the platform gives to the pods of all resources. Resources win over it."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of servers, and of the Jobs that fetch their weights."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """As `spec.template`, and below it."""

    @classmethod
    def of(cls, settings: OperatorSettings) -> "Defaults":
        return cls(settings.default_env, settings.default_template)

    @classmethod
    def pinned(cls, text: str) -> "Defaults":
        """Raises ValueError for what is none."""
        given = json.loads(text or "{}")
        parts: dict[str, Any] = given if isinstance(given, dict) else {"": given}
        if parts.keys() <= {"env", "template"} and all(isinstance(part, dict) for part in parts.values()):
            return cls(**parts)
        raise ValueError(f"not what a platform gives: {text}")

    def to_json(self) -> str:
        told = {name: value for name, value in (("env", self.env), ("template", self.template)) if value}
        return json.dumps(told, sort_keys=True) if told else ""


def wanted_pin(
    deployment: ModelDeployment, backend: str, settings: OperatorSettings, *, one_node: bool = False, shared: str = ""
) -> Pin:
    """What this operator chooses for a new revision. Raises UnsupportedError where the image must be named, or where
    the spec says what it may not.

    `backend`: resolved. `one_node`, `shared`: see Pin.
    """
    server = backends.get(backend)
    server.refuse_own_flags(deployment)
    # Routers follow them for this policy alone; to anybody else they would only tell what is in the prompts.
    publishes = server.publishes_kv_events and settings.kv_events == "prefix" == deployment.spec.routing.policy
    image = _image(deployment, server, settings)
    server.refuse_version(deployment, image)
    return Pin(
        CURRENT_RENDER_VERSION,
        backend,
        image,
        publishes,
        one_node and not shared,
        Defaults.of(settings).to_json(),
        shared,
    )


@lru_cache(maxsize=1024)
def _as_json(pin: Pin) -> str:
    """Each reconciliation asks for it several times, and there are few that differ."""
    told = asdict(pin)
    # What is as it was before there was a choice is left out: so pins of that time, and revisions of them, stay.
    if pin.kv_events:
        del told["kv_events"]
    for name in ("one_node", "defaults", "shared"):
        if not told[name]:
            del told[name]
    return json.dumps(told, sort_keys=True)


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


def _image(deployment: ModelDeployment, backend: Backend, settings: OperatorSettings) -> str:
    wanted = deployment.spec.backend
    image = wanted.image or settings.backend_images.get(backend.name) or _own_image(backend, settings)
    if image is None:
        hint = f"it is {backend.published}, of a registry that --backend-registries names"
        raise backend.unsupported(deployment, "spec.backend.image", f"has no default image: {hint}")
    if wanted.version is None:
        return image
    if "@" in image:
        raise backend.unsupported(deployment, "spec.backend.version", "has an image with a digest: give one of the two")
    return f"{_without_tag(image)}{'@' if is_digest(wanted.version) else ':'}{wanted.version}"


def _own_image(backend: Backend, settings: OperatorSettings) -> str | None:
    """Of the registry that the platform names for it, whichever it is at else."""
    image = settings.engine_image if backend.name == "headwater" else backend.image
    registry = settings.backend_registries.get(backend.name)
    return image if registry is None else f"{registry}/{_without_host(str(image or backend.published))}"


def _without_host(image: str) -> str:
    first, slash, rest = image.partition("/")
    return rest if slash and (first == "localhost" or "." in first or ":" in first) else image


def _without_tag(image: str) -> str:
    folder, slash, name = image.rpartition("/")
    return folder + slash + name.partition(":")[0]  # a colon further left is a registry's port


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]
