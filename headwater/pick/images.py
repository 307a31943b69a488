"""Which container image runs a server on a device: pinned, and without the host of a registry.

Where an image is on Docker Hub, its name is enough. Where its publisher has a registry of its own, the host has to be
said, be it that one or a mirror of it.
"""

from dataclasses import dataclass
from typing import Final

from headwater import backends
from headwater.pick.capabilities import BackendName
from headwater.pick.workload import Workload


@dataclass(frozen=True, slots=True)
class Build:
    name: str
    of_registry: bool = False
    """Whether it is at a registry whose host has to be said."""


_VLLM: Final = (backends.get("vllm").image or "").rpartition(":")[2]
_TRANSFORMERS: Final = str(backends.get("transformers").published)
_BUILDS: Final[dict[tuple[str, str], Build]] = {
    ("vllm", "amd"): Build(f"vllm/vllm-openai-rocm:{_VLLM}"),
    ("vllm", "cpu"): Build(f"vllm/vllm-openai-cpu:{_VLLM}"),
    ("vllm", "intel"): Build(f"vllm/vllm-openai-xpu:{_VLLM}"),
    ("sglang", "mi300x"): Build("lmsysorg/sglang:v0.5.18-rocm700-mi30x"),
    ("sglang", "mi325x"): Build("lmsysorg/sglang:v0.5.18-rocm700-mi30x"),
    ("sglang", "mi355x"): Build("lmsysorg/sglang-rocm:v0.5.17-rocm720-mi35x-20260819"),
    ("tgi", "amd"): Build("huggingface/text-generation-inference:3.3.5-rocm", of_registry=True),
    ("transformers", "cpu"): Build(_TRANSFORMERS, of_registry=True),
    ("transformers", "amd"): Build(f"{_TRANSFORMERS}-rocm", of_registry=True),
}
"""For other devices than NVIDIA's, by vendor or by the very device: the newest that were seen."""


def missing_image(work: Workload, name: BackendName) -> str | None:
    """What has to be said of it: without an image nothing would start. Our own engine's is the operator's matter."""
    if work.image or name == "headwater" or _is_the_operators(work, name):
        return None
    build = _build(work, name)
    if build is None:
        return f"--image: must say which container image runs {name} on {work.accelerator.title}"
    if build.of_registry and not work.registry:
        return f"--registry: must say where {build.name} is, or --image which one runs {name}"
    return None


def image(work: Workload, name: BackendName) -> dict[str, str]:
    """What a deployment says of it, with nothing `missing_image`: nothing where the operator has it by itself."""
    if work.image:
        return {"image": work.image}
    if _is_the_operators(work, name) or (build := _build(work, name)) is None:
        return {}
    return {"image": f"{work.registry}/{build.name}" if build.of_registry else build.name}


def _is_the_operators(work: Workload, name: BackendName) -> bool:
    return backends.get(name).image is not None and work.accelerator.vendor == "nvidia"


def _build(work: Workload, name: BackendName) -> Build | None:
    device, published = work.accelerator, backends.get(name).published
    if published and device.vendor == "nvidia":
        return Build(published, of_registry=True)
    return _BUILDS.get((name, device.name)) or _BUILDS.get((name, device.vendor))
