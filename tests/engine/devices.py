"""Where the parity suite runs: on an NVIDIA GPU, if there is one, with its kernels and CUDA graphs, else on the CPU.

A test that is to hold on both takes its kernels from here, and its file stands in `benchmarks/gpu/run`, so that
`make gpu-test` runs it.
"""

import torch

from headwater_engine.kernels import find_device, select
from headwater_engine.kernels.interface import Kernels, Recorder
from headwater_engine.worker.graphs import cuda_recorder
from tests.engine.recording import record

DEVICE = find_device("auto")


def on_gpu_else(kernels: Kernels) -> Kernels:
    """In float32. `kernels`: those of the CPU."""
    return select(torch.float32, DEVICE) if DEVICE.type == "cuda" else kernels


def recorder() -> Recorder:
    """Of steps: CUDA graphs, or their stand-in."""
    return cuda_recorder() if DEVICE.type == "cuda" else record
