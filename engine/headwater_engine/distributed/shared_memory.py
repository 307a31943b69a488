"""What ranks say to one another on one machine's CPUs, through memory that all of them have.

A step has two sums in each layer, of a few kilobytes where it decodes, and over gloo each takes longer than the
products around it: it goes through the kernel's sockets, and wakes threads. Here a rank writes its part where the
others read it, and looks at their counters until all have done so.
"""

import mmap
import os
import platform
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


def share_memory(ranks: ProcessRanks, name: str) -> ProcessRanks:
    """The same ranks, all of which are on this machine, by shared memory if there is any. `name` is theirs alone."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ranks  # others may show a counter before what was written ahead of it
    path = Path("/dev/shm") / f"headwater-{name}"
    size = ranks.size * (_LINE + 2 * LARGEST)
    there = 1
    if ranks.rank == 0:
        there = _make(path, size)
    if ranks.least(there) == 0:
        return ranks
    try:
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), size)
        ranks.least(1)  # all have it
    finally:
        if ranks.rank == 0:
            path.unlink()
    return SharedMemoryRanks(memory)


def _make(path: Path, size: int) -> int:
    """Whether there is a file of so many zeros, in memory: 0 or 1."""
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            # What is only promised would end the process where it is missing.
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        log.warning("no shared memory for sums, which take longer over gloo", reason=error.strerror, bytes=size)
        path.unlink(missing_ok=True)
        return 0
    return 1
