"""What a GPU says of itself when something goes wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headwater_engine.errors import DeviceError


@contextmanager
def device_checked(device: torch.device) -> Iterator[None]:
    """Raises DeviceError where the device cannot go on: a GPU that failed answers every further call with that.

    Whatever else is raised is no fault of the device, and what was tried may be tried again.
    """
    try:
        yield
    except Exception:
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError as error:
                raise DeviceError(f"The GPU has failed: {str(error).splitlines()[0]}") from error
        raise
