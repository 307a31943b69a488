"""Accelerators: what the arithmetic needs to know of each.

Bandwidth and arithmetic are dense, and of the SXM form where there are several. Memory is what a server sees of it:
from logs, else 97 % of the data sheet's number for HBM and 93 % for GDDR, of which error correction takes a part. Each
figure names its source in `SOURCES`; one without is an estimate, from data sheets as remembered, and is said to be one
wherever it is shown.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

Vendor = Literal["cpu", "nvidia", "amd", "intel", "gaudi", "tpu"]

GPUS_PER_NODE: Final = 8
"""GPUs of one machine that a fast link joins; a replica with more is spread over several machines."""

_RESOURCES: Final[dict[Vendor, str]] = {
    "nvidia": "nvidia.com/gpu",
    "amd": "amd.com/gpu",
    "intel": "gpu.intel.com/xe",
    "gaudi": "habana.ai/gaudi",
    "tpu": "google.com/tpu",
}

FIGURES: Final = ("memory", "bandwidth", "arithmetic", "link")

GIVEN: Final = "flag"
"""The source of a figure that a flag says."""

_GITHUB: Final = "https://github.com"
SOURCES: Final = {
    "logs": f"{_GITHUB}/llm-d-incubation/llm-d-planner/blob/e50305af/docs/empirical-vllm-memory-results.md",
    "comparison": f"{_GITHUB}/stas00/ml-engineering/blob/744d01e18b79512572f64a6bbd8b5f4a725203a7/compute/accelerator/"
    "README.md",
    "aiconfigurator": f"{_GITHUB}/ai-dynamo/aiconfigurator/tree/095f58a51c4ca8e61b66ec108d86f223f8d559ce/aic-core/src/"
    "aiconfigurator_core/systems",
    "gpu-specs": f"{_GITHUB}/winston-zhang-orz/gpu-specs/blob/097f0fb34b7530bb7aa83535e5170a4c6701b5d7/specs.md",
    "duma": f"{_GITHUB}/VladislavDuma/gpu_specs/blob/103f3414c70a935b52b5315fb974f093d966768b/README.md",
    "triteia": f"{_GITHUB}/xiaozheyao/triteia/blob/main/triteia/python/configs/gpus/specs.py",
    "b300": "https://glennklockwood.com/garden/processors/B300",
    "h20": "https://willitrunai.com/es/gpus/h20-96gb",
    "google": "https://docs.cloud.google.com/tpu/docs/tpu7x",
}
"""Where figures are from; of logs the one of an H100: docs/choosing.md names the others."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    name: str
    """As in `--gpu`."""
    title: str
    vendor: Vendor
    generation: str | None
    """None: not known."""
    memory_gib: float | None
    """Of one, as a server sees it; None: not known, so nothing can be said of what fits."""
    bandwidth_gbs: float
    """Of its memory, in 10^9 bytes a second."""
    tflops: float = 1.0
    """10^12 operations a second in bfloat16."""
    tflops8: float | None = None
    """The same in FP8 or INT8; None: no faster."""
    tflops4: float | None = None
    """The same in FP4; None: no faster than 8 bits."""
    link_gbs: float = 50.0
    """To the others of its machine, both ways together, in 10^9 bytes a second."""
    kv_bytes: int = 2
    """Of one key or value in the cache."""
    slice: str | None = None
    """The MIG profile, where it is a slice of a GPU."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Of `FIGURES`, a key of `SOURCES`, or `GIVEN`; those that are not here are estimated."""

    @property
    def resource(self) -> str | None:
        """What a Kubernetes container asks for to get one; None: nothing special."""
        return f"nvidia.com/mig-{self.slice}" if self.slice else _RESOURCES.get(self.vendor)

    @property
    def large(self) -> bool:
        """Whether servers take larger batches on it by default: from 70 GiB on, but not on an A100."""
        return (self.memory_gib or 0) >= 70 and self.generation != "ampere"

    @property
    def estimated(self) -> tuple[str, ...]:
        """Figures that nothing says but memory of data sheets."""
        return tuple(figure for figure in FIGURES if figure not in self.sources)

    def operations(self, bits: int) -> float:
        """10^12 operations a second with weights and activations of so many bits."""
        if bits <= 4 and self.tflops4:
            return self.tflops4
        return self.tflops8 if bits <= 8 and self.tflops8 else self.tflops


_TABLE: Final = (
    # A server socket: 8 channels of DDR4-3200. Where there is no bfloat16 arithmetic, the KV cache is in float32.
    Accelerator("cpu", "CPU", "cpu", "cpu", 64, 205, 3, kv_bytes=4),
    Accelerator("t4", "T4", "nvidia", "turing", 14.6, 320, 65, 130),
    Accelerator("a10", "A10", "nvidia", "ampere", 22.2, 600, 125, 250),
    Accelerator("a10g", "A10G", "nvidia", "ampere", 22.1, 600, 70, 140),
    Accelerator("a30", "A30", "nvidia", "ampere", 23.5, 933, 165, 330, link_gbs=200),
    Accelerator("a6000", "RTX A6000", "nvidia", "ampere", 47.4, 768, 155, 310, link_gbs=112),
    Accelerator("a100-40", "A100 40 GB", "nvidia", "ampere", 39.4, 1555, 312, 624, link_gbs=600),
    Accelerator("a100-80", "A100 80 GB", "nvidia", "ampere", 79.2, 2039, 312, 624, link_gbs=600),
    Accelerator("rtx3090", "RTX 3090", "nvidia", "ampere", 23.6, 936, 71, 142),
    Accelerator("rtx4090", "RTX 4090", "nvidia", "ada", 23.5, 1008, 165, 330),
    Accelerator("rtx5090", "RTX 5090", "nvidia", "blackwell", 31.4, 1792, 210, 419, 838),
    Accelerator("l4", "L4", "nvidia", "ada", 22.0, 300, 121, 242),
    Accelerator("l20", "L20", "nvidia", "ada", 44.5, 864, 119, 239),
    Accelerator("l40s", "L40S", "nvidia", "ada", 44.4, 864, 362, 733),
    Accelerator("rtx-pro-6000", "RTX PRO 6000", "nvidia", "blackwell", 95.0, 1597, 504, 1007, 2015),
    Accelerator("h20", "H20", "nvidia", "hopper", 95.1, 4000, 148, 296, link_gbs=900),
    Accelerator("h100", "H100", "nvidia", "hopper", 79.2, 3350, 989, 1979, link_gbs=900),
    Accelerator("h100-pcie", "H100 PCIe", "nvidia", "hopper", 79.2, 2000, 756, 1513, link_gbs=128),
    Accelerator("h100-nvl", "H100 NVL", "nvidia", "hopper", 93.1, 3900, 835, 1671, link_gbs=600),
    Accelerator("h200", "H200", "nvidia", "hopper", 139.8, 4800, 989, 1979, link_gbs=900),
    Accelerator("b200", "B200", "nvidia", "blackwell", 178.4, 8000, 2250, 4500, 9000, link_gbs=1800),
    Accelerator("b300", "B300", "nvidia", "blackwell", 268, 8000, 2250, 4500, 13125, link_gbs=1800),
    Accelerator("gb200", "GB200", "nvidia", "blackwell", 185, 8000, 2500, 5000, 10000, link_gbs=1800),
    Accelerator("gb300", "GB300", "nvidia", "blackwell", 277, 8000, 2500, 5000, 15000, link_gbs=1800),
    Accelerator("mi300x", "MI300X", "amd", "cdna3", 192, 5300, 1307, 2615, link_gbs=896),
    Accelerator("mi325x", "MI325X", "amd", "cdna3", 256, 6000, 1307, 2615, link_gbs=896),
    Accelerator("mi355x", "MI355X", "amd", "cdna4", 288, 8000, 2500, 5000, 10100, link_gbs=1075),
    Accelerator("arc-b60", "Arc Pro B60", "intel", "battlemage", 22.3, 456, 98, 197),
    Accelerator("gaudi3", "Gaudi 3", "gaudi", "gaudi3", 124, 3700, 1677, 1677, link_gbs=1200),
    Accelerator("tpu-v5e", "TPU v5e", "tpu", "tpu", 15.5, 819, 197, 393, link_gbs=400),
    Accelerator("tpu-v5p", "TPU v5p", "tpu", "tpu", 92, 2765, 459, 918, link_gbs=600),
    Accelerator("tpu-v6e", "TPU v6e", "tpu", "tpu", 31, 1638, 918, 1836, link_gbs=448),
    Accelerator("tpu-v7", "TPU v7", "tpu", "tpu", 186, 7370, 2307, 4614, link_gbs=1200),
)

_FROM: Final = {
    # Of memory, bandwidth, arithmetic and link.
    "t4": "- - gpu-specs -",
    "a10": "- gpu-specs gpu-specs -",
    "a30": "logs aiconfigurator aiconfigurator -",
    "a100-40": "logs gpu-specs gpu-specs -",
    "a100-80": "- aiconfigurator aiconfigurator aiconfigurator",
    "rtx3090": "logs triteia - -",
    "rtx4090": "logs gpu-specs - -",
    "rtx5090": "logs duma - -",
    "l4": "logs aiconfigurator aiconfigurator -",
    "l40s": "logs aiconfigurator comparison -",
    "h20": "- h20 h20 -",
    "h100": "logs comparison comparison aiconfigurator",
    "h100-pcie": "- comparison comparison aiconfigurator",
    "h200": "logs comparison comparison aiconfigurator",
    "b200": "logs comparison comparison aiconfigurator",
    "b300": "aiconfigurator comparison b300 aiconfigurator",
    "gb200": "aiconfigurator comparison comparison aiconfigurator",
    "gb300": "aiconfigurator aiconfigurator comparison aiconfigurator",
    "mi300x": "- comparison comparison -",
    "mi325x": "- comparison comparison -",
    "mi355x": "- comparison comparison -",
    "arc-b60": "- aiconfigurator aiconfigurator -",
    "gaudi3": "- comparison comparison -",
    "tpu-v5e": "- comparison comparison -",
    "tpu-v5p": "- comparison comparison -",
    "tpu-v6e": "- google google -",
    "tpu-v7": "- - google -",
}
"""Keys of `SOURCES`; a dash: estimated, as is all of one that is not here."""


def _with_sources(row: Accelerator) -> Accelerator:
    named = zip(FIGURES, _FROM.get(row.name, "- - - -").split(), strict=True)
    return replace(row, sources={figure: source for figure, source in named if source != "-"})


ACCELERATORS: Final = {row.name: _with_sources(row) for row in _TABLE}

UNKNOWN: Final = {
    "nvidia": Accelerator("nvidia", "NVIDIA GPU", "nvidia", None, None, 1.0),
    "amd": Accelerator("amd", "AMD GPU", "amd", None, None, 1.0),
}
"""What a ModelDeployment says of its GPUs: the vendor, and no more."""

_SLICES: Final = {
    "a30": ("1g.6gb", "2g.12gb", "4g.24gb"),
    "a100-40": ("1g.5gb", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"),
    "a100-80": ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"),
    "h100": ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"),
    "h200": ("1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"),
    "b200": ("1g.23gb", "1g.45gb", "2g.45gb", "3g.90gb", "4g.90gb", "7g.180gb"),
}
"""MIG profiles; the last is the whole GPU."""


def accelerator(name: str) -> Accelerator:
    """In upper case, too; `h100-2g.20gb` is a MIG slice of an H100. Raises KeyError."""
    name = name.lower()
    whole, _, profile = name.rpartition("-")
    if profile in _SLICES.get(whole, ()):
        return _slice(ACCELERATORS[whole], profile)
    return ACCELERATORS.get(name) or UNKNOWN[name]


def close_to(name: str) -> list[str]:
    """Known names that may have been meant: `NVIDIA-H100-80GB-HBM3` is an h100, `a100` one of two."""
    words = re.split(r"[^a-z0-9.]+", name.lower())
    if whole := next((known for known in _SLICES if known in name.lower() and re.search(r"\d+g\b", name)), None):
        return [f"{whole}-{profile}" for profile in _SLICES[whole]]
    if exact := [known for known in ACCELERATORS if known in words and known != "cpu"]:
        return exact
    if parts := [known for known in ACCELERATORS if any(len(word) > 2 and word in known for word in words)]:
        return parts
    return difflib.get_close_matches(name.lower(), ACCELERATORS, n=1)


def _slice(whole: Accelerator, profile: str) -> Accelerator:
    """A slice has its share of the memory, of the way to it, and of 7 parts of the arithmetic (4 of an A30)."""
    compute, gigabytes = _parts(profile)
    all_compute, all_gigabytes = _parts(_SLICES[whole.name][-1])
    assert whole.memory_gib is not None
    share, part = gigabytes / all_gigabytes, compute / all_compute
    return replace(
        whole,
        name=f"{whole.name}-{profile}",
        title=f"{whole.title} {profile}",
        memory_gib=round(whole.memory_gib * share, 1),
        bandwidth_gbs=whole.bandwidth_gbs * share,
        tflops=whole.tflops * part,
        tflops8=whole.tflops8 and whole.tflops8 * part,
        tflops4=whole.tflops4 and whole.tflops4 * part,
        slice=profile,
    )


def _parts(profile: str) -> tuple[int, int]:
    """`2g.20gb`: of the arithmetic, and of the memory."""
    compute, _, gigabytes = profile.removesuffix("gb").partition("g.")
    return int(compute), int(gigabytes)
