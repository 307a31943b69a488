"""What each backend can do, as we deploy it: one row a backend.

Sources: the projects' own support tables in 2026-11, and for ours what `headwater/backends/` accepts. Where a project
can do something that we do not deploy (SGLang's and TGI's builds for CPUs, TensorRT-LLM below Hopper or over several
machines), the row says no. A release that changes this changes a line here, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from headwater.pick.hardware import Accelerator, Vendor

BackendName = Literal["headwater", "vllm", "sglang", "tgi", "tensorrt-llm", "transformers"]

BUILD: Final = timedelta(minutes=30)
"""What TensorRT-LLM's engine needs before the first start. Its PyTorch backend, the default, needs nothing."""

Strength = Literal["breadth", "prefix", "hugging face", "peak", "cpu", "default"]
"""What a backend is chosen for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    backend: BackendName
    quantizations: Mapping[Vendor, frozenset[str]]
    """For each kind of device that it runs on, what it loads besides 16 bits."""
    online: frozenset[str]
    """What it can make of weights in 16 bits while it loads them."""
    tensor: frozenset[Vendor]
    """Devices of which several can share a layer. Of CPUs only where a workload asks for it: a network is slow."""
    nodes: bool
    """Whether these may be in several machines."""
    pipeline: bool
    """Whether layers can be cut into stages."""
    data: bool
    """Whether GPUs of one replica can compute the attention of requests of their own."""
    adapters: bool
    structured: bool
    sampling: bool
    """Whether it can be given defaults for requests that do not say how to sample."""
    experts: bool
    """Whether experts can be spread over GPUs whole."""
    kv_fp8: bool
    """Whether the KV cache can be in FP8, on GPUs of `kv_fp8_on`."""
    host_cache: bool
    """Whether evicted KV blocks can move to host memory."""
    prefix_cache: bool
    """Whether a prefix that requests share is kept once."""
    generations: tuple[str, ...] | None
    """Of GPUs; None: any."""
    families: frozenset[str] | None
    """Of models that it has code for; None: any, if need be through the transformers library."""
    vision: bool
    """Whether it runs models that see."""
    packaged: bool
    """Whether it loads `package://` and `random:`."""
    strengths: frozenset[Strength]
    strong_on: frozenset[Vendor] | None = None
    """Devices on which that counts; None: all that it runs on."""
    kv_fp8_on: tuple[str, ...] | None = None
    """Generations of GPUs; None: all that it runs on."""

    def is_strong(self, strength: Strength, vendor: Vendor) -> bool:
        return strength in self.strengths and (self.strong_on is None or vendor in self.strong_on)

    def keeps_fp8(self, accelerator: Accelerator) -> bool:
        """Whether its KV cache can be in FP8 there; of a GPU whose generation is not known it is taken for granted."""
        return self.kv_fp8 and (self.kv_fp8_on is None or accelerator.generation in (None, *self.kv_fp8_on))


_ALL: Final = frozenset({"fp8", "int8", "mxfp8", "awq", "gptq", "int4", "nvfp4", "mxfp4", "gguf", "bnb"})
_AMD: Final = frozenset({"fp8", "int8", "mxfp4", "awq", "gptq", "int4"})
_NONE: Final[frozenset[str]] = frozenset()
_GPUS: Final = frozenset[Vendor]({"nvidia", "amd"})
_NOWHERE: Final = frozenset[Vendor]()
_WELL_KNOWN: Final = frozenset({"deepseek", "gemma", "llama", "mistral", "mixtral", "phi", "qwen", "qwen-moe"})

CAPABILITIES: Final = (
    # In the order that holds where no rule says otherwise.
    Capability(
        backend="vllm",
        quantizations={
            "nvidia": _ALL,
            "amd": _AMD | {"mxfp8"},
            "cpu": frozenset({"awq", "gptq", "int8"}),
            "intel": frozenset({"fp8", "awq", "gptq"}),
            "gaudi": frozenset({"fp8", "awq", "gptq"}),
            "tpu": frozenset({"fp8", "int8"}),
        },
        online=frozenset({"fp8"}),
        tensor=_GPUS | {"intel", "gaudi", "tpu"},
        nodes=True,
        pipeline=True,
        data=True,
        adapters=True,
        structured=True,
        sampling=True,
        experts=True,
        kv_fp8=True,
        host_cache=True,
        prefix_cache=True,
        generations=None,
        families=None,
        vision=True,
        packaged=False,
        strengths=frozenset({"default"}),
    ),
    Capability(
        backend="sglang",
        quantizations={"nvidia": _ALL - {"mxfp8"}, "amd": _AMD},
        online=frozenset({"fp8"}),
        tensor=_GPUS,
        nodes=True,
        pipeline=True,
        data=True,
        adapters=True,
        structured=True,
        sampling=False,
        experts=True,
        kv_fp8=True,
        host_cache=True,
        prefix_cache=True,
        generations=None,
        families=None,
        vision=True,
        packaged=False,
        strengths=frozenset({"prefix"}),
    ),
    Capability(
        backend="tensorrt-llm",
        quantizations={"nvidia": frozenset({"fp8", "awq", "nvfp4", "mxfp4"})},
        online=_NONE,
        tensor=frozenset({"nvidia"}),
        nodes=False,
        pipeline=True,
        data=True,
        adapters=False,
        structured=True,
        sampling=False,
        experts=True,
        kv_fp8=True,
        host_cache=True,
        prefix_cache=True,
        generations=("hopper", "blackwell"),
        families=_WELL_KNOWN | {"exaone", "glm", "gpt-oss", "kimi", "llama4", "nemotron", "qwen-hybrid"},
        vision=True,
        packaged=False,
        strengths=frozenset({"peak"}),
    ),
    Capability(
        backend="tgi",
        quantizations={"nvidia": frozenset({"fp8", "awq", "gptq", "bnb"}), "amd": _NONE},
        online=frozenset({"fp8"}),
        tensor=_GPUS,
        nodes=False,
        pipeline=False,
        data=False,
        adapters=True,
        structured=True,
        sampling=False,
        experts=False,
        kv_fp8=True,
        host_cache=False,
        prefix_cache=True,
        generations=None,
        families=_WELL_KNOWN | {"llama4", "smollm"},
        vision=True,
        packaged=False,
        strengths=frozenset({"hugging face"}),
    ),
    Capability(
        backend="headwater",
        quantizations={"nvidia": _NONE, "cpu": _NONE},
        online=_NONE,
        tensor=frozenset({"nvidia", "cpu"}),
        nodes=True,
        pipeline=False,
        data=False,
        adapters=False,
        structured=True,
        sampling=True,
        experts=False,
        kv_fp8=True,
        host_cache=False,
        prefix_cache=True,
        generations=("ampere", "ada", "hopper", "blackwell"),
        families=frozenset({"gemma", "llama", "mistral", "qwen", "smollm"}),
        vision=False,
        packaged=True,
        strengths=frozenset({"prefix", "cpu"}),
        strong_on=frozenset({"cpu"}),
        kv_fp8_on=("ada", "hopper", "blackwell"),
    ),
    Capability(
        backend="transformers",
        quantizations={"nvidia": _NONE, "amd": _NONE, "cpu": _NONE},
        online=_NONE,
        tensor=_NOWHERE,
        nodes=False,
        pipeline=False,
        data=False,
        adapters=False,
        structured=False,
        sampling=False,
        experts=False,
        kv_fp8=False,
        host_cache=False,
        prefix_cache=False,
        generations=None,
        families=None,
        vision=True,
        packaged=False,
        strengths=frozenset({"breadth"}),
    ),
)
