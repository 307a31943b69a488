"""A sum over ranks whose GPUs see one another's memory: each reads what all others have laid down, and adds it up.

NCCL passes parts on from GPU to GPU, so that each byte travels the least. For the few kilobytes of a step that decodes
what counts is how often GPUs wait for one another, which is once here. Each rank writes its part to its own memory,
says so in the memory of all others, waits until all have, and reads theirs.

    rank 0   part to own memory │ tell 1 and 2 │ wait for 1 and 2 │ read and add up 0, 1, 2
    rank 1   part to own memory │ tell 0 and 2 │ wait for 0 and 2 │ read and add up 0, 1, 2

A rank's memory has two places for parts, in turn: who is two sums ahead has seen all others begin the one between, and
so end the one before. It has a number for each program of each rank as well, that of the last sum whose part is there.
Programs wait for those of the same place on other GPUs, so there are never more than run at once.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

LARGEST = 1 << 18
"""Bytes of a part. Nobody has measured yet from where on NCCL is faster."""
PROGRAMS = 32
MOST_RANKS = 16
_COLUMNS = 1024
_SIGNALS = tl.constexpr(PROGRAMS * MOST_RANKS * 8)
_PLACE = tl.constexpr(LARGEST)
BYTES = PROGRAMS * MOST_RANKS * 8 + 2 * LARGEST
"""Of the memory of each rank, which is all 0 before the first sum."""


@dataclass(slots=True)
class Peers:
    rank: int
    size: int
    addresses: Tensor
    """[size] int64, on the device: where this rank finds the memory of each."""
    number: Tensor
    """[1] int64, on the device: of the last sum. A recorded step counts on when it is replayed."""


def sum_over_peers(x: Tensor, peers: Peers) -> None:
    """The sum of all ranks' `x`, in place: contiguous, up to LARGEST bytes. The same on all ranks, to the last bit."""
    peers.number.add_(1)
    _sum_kernel[(min(PROGRAMS, triton.cdiv(x.numel(), _COLUMNS)),)](
        x, peers.addresses, peers.number, x.numel(), RANK=peers.rank, SIZE=peers.size, COLUMNS=_COLUMNS, num_warps=4
    )


@triton.jit(do_not_specialize=["count"])
def _sum_kernel(
    x,  # [count]
    addresses,  # [SIZE]
    sums,  # [1]
    count,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    number = tl.load(sums)
    own = tl.load(addresses + RANK)
    place = _SIGNALS + (number % 2) * _PLACE
    first, step = tl.program_id(0) * COLUMNS, tl.num_programs(0) * COLUMNS
    part = (own + place).to(x.dtype)
    for start in range(first, count, step):
        at = start + tl.arange(0, COLUMNS)
        tl.store(part + at, tl.load(x + at, mask=at < count), mask=at < count)
    tl.debug_barrier()  # all threads have written
    for peer in tl.static_range(SIZE):
        signals = tl.load(addresses + peer).to(tl.pointer_type(tl.int64)) + tl.program_id(0) * SIZE
        tl.atomic_xchg(signals + RANK, number, sem="release", scope="sys")
    signals = own.to(tl.pointer_type(tl.int64)) + tl.program_id(0) * SIZE
    for peer in tl.static_range(SIZE):
        while tl.atomic_add(signals + peer, 0, sem="acquire", scope="sys") < number:
            pass
    tl.debug_barrier()
    for start in range(first, count, step):
        at = start + tl.arange(0, COLUMNS)
        total = tl.zeros([COLUMNS], tl.float32)
        for peer in tl.static_range(SIZE):
            part = (tl.load(addresses + peer) + place).to(x.dtype)
            total += tl.load(part + at, mask=at < count, other=0.0, volatile=True).to(tl.float32)
        tl.store(x + at, total.to(x.dtype.element_ty), mask=at < count)
