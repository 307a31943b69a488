"""The sum over GPUs that see one another's memory, in Triton's interpreter: files that several processes map are that.

So ranks really wait for one another here, and read what others have written. What no test without two GPUs shows is
that a GPU makes its writes visible in the order that the kernel asks for.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.in_ranks import in_ranks

pytest.importorskip("triton", reason="torch for CPUs comes without Triton")

import tests.engine.interpreter  # noqa: F401  # bfloat16
from headwater_engine.distributed import peer_memory
from headwater_engine.distributed.peer_memory import PeerRanks, share_peers
from headwater_engine.distributed.ranks import ProcessRanks
from headwater_engine.kernels.triton.all_reduce import (
    BYTES,
    LARGEST,
    MOST_RANKS,
    PROGRAMS,
    Peers,
    sum_over_peers,
)

CPU = torch.device("cpu")
SIZES = [1, 7, 2500, 3, 33_000, 1, LARGEST // 4 + 1, 64, 2500]
"""So that programs come and go between sums, some take several pieces, and one sum is too large."""


def part(rank: int, number: int, size: int, dtype: torch.dtype) -> Tensor:
    return (torch.arange(size) % 97 + 0.37 * rank + number).to(dtype)


SIGNALS = PROGRAMS * MOST_RANKS * 8
"""Bytes before the two places of parts."""


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 3000) | st.sampled_from([PROGRAMS * 1024, PROGRAMS * 1024 + 1, LARGEST // 4]),
    size=st.integers(1, 5),
    turn=st.integers(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    data=st.data(),
)
def test_a_rank_adds_up_any_number_of_numbers(
    count: int, size: int, turn: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    """One rank by itself: what it would wait for is there before."""
    rank, number = data.draw(st.integers(0, size - 1)), 2**31 + turn
    memories = [torch.zeros(BYTES, dtype=torch.uint8) for _ in range(size)]
    parts = [part(peer, number % 7, count, dtype) for peer in range(size)]
    begin, end = SIGNALS + turn * LARGEST, SIGNALS + turn * LARGEST + parts[0].nbytes
    for memory, laid in zip(memories, parts, strict=True):
        memory[begin:end] = laid.view(torch.uint8)
    memories[rank][begin:end] = 0
    heard = memories[rank][: PROGRAMS * size * 8].view(torch.int64).view(PROGRAMS, size)
    heard.fill_(number)
    heard[:, rank] = 0
    addresses = torch.tensor([memory.data_ptr() for memory in memories])
    x = parts[rank].clone()
    sum_over_peers(x, Peers(rank, size, addresses, torch.tensor([number - 1])))
    total = torch.zeros(count)
    for each in parts:
        total += each.float()
    assert torch.equal(x, total.to(dtype))
    assert torch.equal(memories[rank][begin:end].view(dtype), parts[rank]), "for the others to read"
    programs = min(PROGRAMS, -(-count // 1024))
    for memory in memories:
        told = memory[: PROGRAMS * size * 8].view(torch.int64).view(PROGRAMS, size)[:, rank]
        assert told.tolist() == [number] * programs + [0] * (PROGRAMS - programs)


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
        dtype = (torch.float32, torch.float16, torch.bfloat16)[number % 3]
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
