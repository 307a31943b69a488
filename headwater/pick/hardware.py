"""Accelerators: what the arithmetic needs to know of each.

Memory and bandwidth are those of the vendors' public data sheets, of the SXM form where there are several. Their
gigabytes are read as GiB, which is right for cards with HBM. Cards with GDDR and ECC show about 6 % less; the reserve
of `memory.RESERVE_GIB` is meant to hold that, too.
"""

from dataclasses import dataclass
from typing import Final, Literal

Vendor = Literal["cpu", "nvidia", "amd"]

GPUS_PER_NODE: Final = 8
"""GPUs of one machine that a fast link joins; a replica with more is spread over several machines."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    name: str
    """As in `--gpu`."""
    title: str
    vendor: Vendor
    generation: str | None
    """None: not known."""
    memory_gib: float | None
    """Of one; None: not known, so nothing can be said of what fits."""
    bandwidth_gbs: float
    """Of its memory, in 10^9 bytes a second."""
    kv_bytes: int = 2
    """Of one key or value in the cache."""

    @property
    def resource(self) -> str | None:
        """What a Kubernetes container asks for to get one; None: nothing special."""
        return None if self.vendor == "cpu" else f"{self.vendor}.com/gpu"


_TABLE: Final = (
    # A server socket: 8 channels of DDR4-3200. Where there is no bfloat16 arithmetic, the KV cache is in float32.
    Accelerator("cpu", "CPU", "cpu", "cpu", 64, 205, kv_bytes=4),
    Accelerator("t4", "T4", "nvidia", "turing", 16, 320),
    Accelerator("a10", "A10", "nvidia", "ampere", 24, 600),
    Accelerator("a100-40", "A100 40 GB", "nvidia", "ampere", 40, 1555),
    Accelerator("a100-80", "A100 80 GB", "nvidia", "ampere", 80, 2039),
    Accelerator("l4", "L4", "nvidia", "ada", 24, 300),
    Accelerator("l40s", "L40S", "nvidia", "ada", 48, 864),
    Accelerator("h100", "H100", "nvidia", "hopper", 80, 3350),
    Accelerator("h200", "H200", "nvidia", "hopper", 141, 4800),
    Accelerator("b200", "B200", "nvidia", "blackwell", 180, 8000),
    Accelerator("mi300x", "MI300X", "amd", "cdna3", 192, 5300),
)

ACCELERATORS: Final = {accelerator.name: accelerator for accelerator in _TABLE}

UNKNOWN: Final = {
    "nvidia": Accelerator("nvidia", "NVIDIA GPU", "nvidia", None, None, 1.0),
    "amd": Accelerator("amd", "AMD GPU", "amd", None, None, 1.0),
}
"""What a ModelDeployment says of its GPUs: the vendor, and no more."""


def accelerator(name: str) -> Accelerator:
    """Raises KeyError."""
    return ACCELERATORS.get(name) or UNKNOWN[name]
