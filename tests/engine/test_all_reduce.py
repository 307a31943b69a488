"""The sum over GPUs that see one another's memory, in Triton's interpreter: files that several processes map are that.

So ranks really wait for one another here, and read what others have written. What no test without two GPUs shows is
that a GPU makes its writes visible in the order that the kernel asks for.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.engine.in_ranks import in_ranks

pytest.importorskip("triton", reason="torch for CPUs comes without Triton")

from headwater_engine.distributed import peer_memory
from headwater_engine.distributed.peer_memory import PeerRanks, share_peers
from headwater_engine.distributed.ranks import ProcessRanks
from headwater_engine.kernels.triton.all_reduce import BYTES, LARGEST

CPU = torch.device("cpu")
SIZES = [1, 7, 2500, 3, 33_000, 1, LARGEST // 4 + 1, 64, 2500]
"""So that programs come and go between sums, some take several pieces, and one sum is too large."""


def part(rank: int, number: int, size: int, dtype: torch.dtype) -> Tensor:
    return (torch.arange(size) % 97 + 0.37 * rank + number).to(dtype)


def add_up(folder: Path) -> tuple[list[Tensor], int]:
    """All sums, and how many of them went over gloo."""
    over_gloo = 0
    usual = ProcessRanks.sum

    def counted(self: ProcessRanks, x: Tensor) -> Tensor:
        nonlocal over_gloo
        over_gloo += 1
        return usual(self, x)

    ProcessRanks.sum = counted  # type: ignore[method-assign]  # in this process, which ends soon
    alone = ProcessRanks()
    memories = [
        torch.from_file(str(folder / f"memory-{rank}"), shared=True, size=BYTES, dtype=torch.uint8)
        for rank in range(alone.size)
    ]

    handle = SimpleNamespace(buffer_ptrs=[memory.data_ptr() for memory in memories])

    def refuse(memory: Tensor, group: object) -> SimpleNamespace:
        raise RuntimeError("CUDA driver error: no peer access\nand more")

    symmetric_memory = peer_memory.symmetric_memory
    symmetric_memory.empty = lambda size, dtype, device: memories[alone.rank]
    symmetric_memory.rendezvous = refuse if alone.rank == 1 else lambda memory, group: handle
    assert share_peers(alone, CPU) is alone, "all do without where one has to"
    symmetric_memory.rendezvous = lambda memory, group: handle
    add = peer_memory.sum_over_peers
    peer_memory.sum_over_peers = lambda x, peers: x.mul_(alone.size) if alone.rank == 2 else x
    assert share_peers(alone, CPU) is alone, "nor is it done where sums do not come out right"
    peer_memory.sum_over_peers = add
    ranks = share_peers(alone, CPU)
    assert isinstance(ranks, PeerRanks)
    over_gloo = 0
    ranks._peers.number.fill_(2**31 - 4)  # as after some days
    found = []
    for number, count in enumerate(SIZES):
        dtype = torch.float16 if number % 3 == 1 else torch.float32  # the interpreter cuts bfloat16 off
        found.append(ranks.sum(part(ranks.rank, number, count, dtype)))
    ranks.least(0)  # what is mapped stays until all have read it
    return found, over_gloo


def test_ranks_add_up_what_all_have_laid_down(tmp_path: Path) -> None:
    size = 3
    by_rank = in_ranks(size, tmp_path, add_up, tmp_path)
    for number, count in enumerate(SIZES):
        first, *others = (found[number] for found, _ in by_rank)
        parts = [part(rank, number, count, first.dtype).float() for rank in range(size)]
        torch.testing.assert_close(first, sum(parts[1:], parts[0]).to(first.dtype), rtol=1e-6, atol=0)
        assert all(torch.equal(first, other) for other in others)
    assert [over_gloo for _, over_gloo in by_rank] == [1] * size
