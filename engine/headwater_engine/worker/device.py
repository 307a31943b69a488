"""What a GPU says of itself when something goes wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headwater_engine.errors import DeviceError, DeviceMemoryError


@contextmanager
def device_checked(device: torch.device) -> Iterator[None]:
    """Raises DeviceError where the device cannot go on: a GPU that failed answers every further call with that.

    So it does where a GPU has no memory left: it would go on, but room for the largest step was kept, so others have
    taken it, and a step that is tried again would fail again. Whatever else is raised is no fault of the device, and
    what was tried may be tried again.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        words = str(error).splitlines()[0]
        raise DeviceMemoryError(f"The GPU has no memory for a step: {words} Lower --gpu-memory-utilization.") from error
    except Exception:
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError as error:
                raise DeviceError(f"The GPU has failed: {str(error).splitlines()[0]}") from error
        raise
