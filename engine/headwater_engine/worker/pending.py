"""Results on their way home."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater_engine.core.step import Result
from headwater_engine.worker.device import device_checked


@dataclass(slots=True)
class Parcel:
    """Tensors that are copied to the host, and those that they are copied from, which must live for as long."""

    tensors: list[Tensor]
    sources: Sequence[Tensor]
    here: torch.cuda.Event | None
    """None: they were here all the time."""

    def open(self) -> list[Tensor]:
        """Waits for them, and for nothing else that the device has to do."""
        if self.here is not None:
            self.here.synchronize()
        return self.tensors


class Home:
    """Copies from a device to the host, on a stream of their own: they overtake the next step, which may be queued."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, tensors: Sequence[Tensor]) -> Parcel:
        """They must not be written to any more: when they are read, nobody says."""
        if self._stream is None:
            return Parcel(list(tensors), (), None)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            # Only to pinned memory can be copied while the host goes on.
            copies = [torch.empty_like(each, device="cpu", pin_memory=True) for each in tensors]
            for copy, source in zip(copies, tensors, strict=True):
                copy.copy_(source, non_blocking=True)
            here = torch.cuda.Event()
            here.record(self._stream)
        return Parcel(copies, tensors, here)


@dataclass(slots=True)
class Coming:
    """`Pending`: a result that is made of a parcel."""

    parcel: Parcel
    device: torch.device
    read: Callable[[list[Tensor]], Result]

    def wait(self) -> Result:
        with device_checked(self.device):
            arrived = self.parcel.open()
        return self.read(arrived)
