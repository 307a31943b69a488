"""From the host to a device, without waiting for it."""

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The same numbers there; on a CPU in the same memory.

    Memory that the kernel may move, as NumPy's, can only be read by a copy that the host waits for, and so for all that
    the device has to do before. Torch keeps pinned memory until the copy has read it.
    """
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
