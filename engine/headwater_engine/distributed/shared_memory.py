"""What ranks say to one another on one machine's CPUs, through memory that all of them have.

A step has two sums in each layer, of a few kilobytes where it decodes, and over gloo each takes longer than the
products around it: it goes through the kernel's sockets, and wakes threads. Here a rank writes its part where the
others read it, and looks at their counters until all have done so.
"""

import mmap
import os
import platform
import sys
import time
from pathlib import Path
from typing import Final

import structlog
import torch
from torch import Tensor

from headwater_engine.distributed.ranks import ProcessRanks

log = structlog.get_logger(__name__)

LARGEST: Final = 1 << 20
"""Bytes of a rank's part. Above that what counts is how fast memory is read, and gloo does it piece by piece."""
_LINE: Final = 64
"""Bytes of a cache line: counters in one would go to and fro between the cores."""
_LOOKS: Final = 200
"""At the counters before others get this core, in case who is waited for needs it."""
_PATIENT_LOOKS: Final = 400
"""At the counters before this rank sleeps in between: another one does something that takes its time."""
_NAP: Final = 5e-5
"""Seconds."""


class SharedMemoryRanks(ProcessRanks):
    """Of each rank a counter of what it has said, and two places to say it, in turn.

    A place is written again only after all have read it: who is two ahead has seen all others at the one between.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        super().__init__()
        everything = torch.frombuffer(memory, dtype=torch.uint8)
        counters, places = everything.split([self.size * _LINE, 2 * self.size * LARGEST])
        self._counters = counters.view(torch.int64).numpy()[:: _LINE // 8]
        self._places = places.view(2, self.size, LARGEST)
        self._said = 0

    def sum(self, x: Tensor) -> Tensor:
        if x.nbytes > LARGEST or not x.is_contiguous():
            return super().sum(x)
        first, *others = self._exchange(x)
        x.copy_(first)
        for other in others:  # in one order, so that all have the same to the last bit
            x.add_(other)
        return x

    def gather(self, x: Tensor) -> Tensor:
        if x.nbytes > LARGEST:
            return super().gather(x)
        parts = self._exchange(x.contiguous())
        return x.new_empty(0, x.shape[1] * self.size) if self.rank else torch.cat(parts, dim=1)

    def exchange(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x)) if x.nbytes <= LARGEST else super().exchange(x)

    def tell(self, x: Tensor) -> Tensor:
        if x.nbytes > LARGEST:
            return super().tell(x)
        return x.copy_(self._exchange(x.contiguous())[0])

    def _exchange(self, x: Tensor) -> list[Tensor]:
        """All ranks' tensors of `x`'s shape and type, valid until the next but one is exchanged."""
        self._said += 1
        places = self._places[self._said % 2, :, : x.nbytes].view(x.dtype).view(self.size, *x.shape)
        places[self.rank].copy_(x)
        self._counters[self.rank] = self._said
        looks = 0
        while self._counters.min() < self._said:
            looks += 1
            if looks > _PATIENT_LOOKS:
                time.sleep(_NAP)
            elif looks > _LOOKS:
                os.sched_yield()
        return list(places.unbind())


def share_memory(ranks: ProcessRanks) -> ProcessRanks:
    """The same ranks, all of which are on this machine, by shared memory where all of them get it."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return ranks  # others may show a counter before what was written ahead of it
    size = ranks.size * (_LINE + 2 * LARGEST)
    own = _take(size) if ranks.rank == 0 else -1
    process, descriptor = ranks.tell(torch.tensor([os.getpid(), own])).tolist()
    memory = _map(Path(f"/proc/{process}/fd/{descriptor}"), size) if descriptor >= 0 else None
    all_have_it = ranks.least(int(memory is not None))
    if own >= 0:
        os.close(own)
    return SharedMemoryRanks(memory) if memory is not None and all_have_it else ranks


def _take(size: int) -> int:
    """A descriptor of so many zeros in memory, which go with the last process that has them; -1: there are none."""
    try:
        descriptor = os.memfd_create("headwater-ranks")
        # What is only promised would end the process where it is missing.
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        log.warning("no shared memory for sums, which take longer over gloo", reason=error.strerror, bytes=size)
        return -1
    return descriptor


def _map(path: Path, size: int) -> mmap.mmap | None:
    try:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        log.warning("shared memory of another rank cannot be had; sums take longer over gloo", reason=error.strerror)
        return None
