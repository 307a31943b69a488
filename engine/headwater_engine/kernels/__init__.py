"""The operations that a model needs of the hardware: `select` picks the fastest implementation that works here.

`interface.py` is the contract, `reference.py` the same in plain torch. On an NVIDIA GPU (`gpu.py`) weights, KV,
activations and products are all of the weights' type, with sums in float32. What is computed in which type on a CPU:

| `select(...)` | where | weights, KV | activations | products |
|---|---|---|---|---|
| float32 | any CPU | float32 | float32 | float32 |
| bfloat16 | AMX or AVX512_BF16 | bfloat16 | bfloat16 | of bfloat16, summed in float32 |
| bfloat16 | any other CPU | bfloat16 | float32 | float32: bfloat16 only halves the memory to read |

Keys and values are of the type of the weights where `--kv-cache-dtype` says nothing else: bfloat16 anywhere, or fp8
(e4m3) on GPUs and in plain torch. They are widened as attention reads them.

Where the C++ kernels cannot be built, plain torch takes over with a warning; on the last row it then holds float32
throughout, because emulated bfloat16 products are several times slower. The environment variable
HEADWATER_KERNELS=torch asks for plain torch from the start.
"""

import os

import structlog
import torch

from headwater_engine.errors import LoadError
from headwater_engine.kernels.build import BuildError
from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import Kernels
from headwater_engine.kernels.reference import TorchKernels

log = structlog.get_logger(__name__)


CPU = torch.device("cpu")
KV_DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
"""By the value of `--kv-cache-dtype`; None: the type of the weights."""


def find_device(choice: str, number: int = 0) -> torch.device:
    """What `--device` asks for: `cpu`, `cuda`, or with `auto` a GPU where there is one. Raises LoadError.

    `number` is that of the GPU: each rank on a machine has its own.
    """
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise LoadError(f"--device cuda: torch {torch.__version__} finds no NVIDIA GPU on this machine.")
    if number >= (count := torch.cuda.device_count()):
        raise LoadError(f"Each rank needs a GPU of its own, and this machine has {count}.")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def select(dtype: torch.dtype, device: torch.device = CPU, kv_cache: str = "auto") -> Kernels:
    """The best kernels on this machine for weights of `dtype` on a device of `find_device`.

    That is bfloat16 or float32, on a GPU also float16. `kv_cache`: what `--kv-cache-dtype` says, one of KV_DTYPES.
    Raises ValueError for any other type, or for an unknown HEADWATER_KERNELS, and LoadError for a type of KV that is
    not to be had here.
    """
    kv_dtype = KV_DTYPES[kv_cache]
    if device.type == "cuda":
        from headwater_engine.kernels.gpu import TritonKernels  # triton, which torch for CPUs comes without

        if kv_cache == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
            raise LoadError(
                f"--kv-cache-dtype fp8: {torch.cuda.get_device_name(device)} has no numbers of 8 bits, as GPUs have "
                "from compute capability 8.9 on."
            )
        return TritonKernels(dtype, device, kv_dtype)
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"dtype: found {dtype}, allowed on a CPU are torch.bfloat16 and torch.float32")
    choice = os.environ.get("HEADWATER_KERNELS", "auto")
    if choice not in ("auto", "torch"):
        raise ValueError(f"HEADWATER_KERNELS: found {choice!r}, allowed are 'auto' and 'torch'")
    products = _products(dtype)
    if choice == "auto":
        if kv_cache == "fp8":
            raise LoadError(
                "--kv-cache-dtype fp8: on a CPU, keys and values are bfloat16 or float32. It needs an NVIDIA GPU, or "
                "HEADWATER_KERNELS=torch, which is slow."
            )
        try:
            return CppKernels(dtype, products, kv_dtype)
        except BuildError as error:
            reason = str(error)
            log.warning("C++ kernels not built, plain torch takes over and is several times slower", reason=reason)
    else:
        reason = "HEADWATER_KERNELS=torch"
    return TorchKernels(torch.float32 if products == Products.FLOAT32 else dtype, reason, kv_dtype)


def _products(weights: torch.dtype) -> Products:
    """What this CPU multiplies weights of this type with fastest."""
    if weights == torch.float32:
        return Products.FLOAT32
    return Products.BFLOAT16 if multiplies_bfloat16() else Products.FLOAT32


def multiplies_bfloat16() -> bool:
    """Whether this CPU does so by itself, which is the faster arithmetic then, and rounds activations to bfloat16."""
    return torch.cpu._is_avx512_bf16_supported()
