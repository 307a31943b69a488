"""What ranks on GPUs say to one another, as far as one GPU shows it.

NCCL takes no two ranks on one GPU. Sums over memory need none: two streams of one GPU stand for two GPUs there, as each
waits, in its kernel, for what the other writes.
"""

import multiprocessing
import socket
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from headwater_engine.kernels.triton.all_reduce import BYTES, LARGEST, Peers, sum_over_peers

SIZES = [1, 7, 2500, 33_000, 1, LARGEST // 2, 64, 2500]


def test_two_streams_add_up_what_both_have_laid_down() -> None:
    size, device = 2, torch.device("cuda")
    memories = [torch.zeros(BYTES, dtype=torch.uint8, device=device) for _ in range(size)]
    addresses = torch.tensor([memory.data_ptr() for memory in memories], dtype=torch.int64, device=device)
    ranks = [Peers(rank, size, addresses, torch.zeros(1, dtype=torch.int64, device=device)) for rank in range(size)]
    parts = [[torch.randn(count, device=device).bfloat16() for count in SIZES * 20] for _ in range(size)]
    expected = [(one.float() + other.float()).bfloat16() for one, other in zip(*parts, strict=True)]
    # Who compiles waits for the whole GPU, and the other rank's kernel would wait for this one: so before all else.
    for rank in range(size):
        alone = Peers(rank, size, addresses, torch.full((1,), -5, dtype=torch.int64, device=device))
        sum_over_peers(torch.zeros(1, dtype=torch.bfloat16, device=device), alone)
    for memory in memories:
        memory.zero_()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(size)]
    for place in range(len(expected)):
        for peers, stream, own in zip(ranks, streams, parts, strict=True):
            with torch.cuda.stream(stream):
                sum_over_peers(own[place], peers)
    torch.cuda.synchronize()
    for place, total in enumerate(expected):
        assert torch.equal(parts[0][place], total)
        assert torch.equal(parts[1][place], total)


def _meet(port: int) -> list[float]:
    from headwater_engine.distributed.meet import find_ranks
    from headwater_engine.distributed.peer_memory import PeerRanks
    from headwater_engine.distributed.place import Meeting, Place

    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    ranks = find_ranks(Place(0, 1, 0, 1, Meeting(f"tcp://127.0.0.1:{port}", "", "secret")), device)
    assert isinstance(ranks, PeerRanks)
    small, large = torch.full((3,), 2.0, device=device), torch.full((LARGEST,), 3.0, device=device)
    return [*ranks.sum(small).tolist(), ranks.sum(large)[-1].item(), ranks.least(7)]


def test_nccl_meets_in_our_store_and_shares_memory() -> None:
    """With one rank, which asks the store for all that several do, and has itself for a peer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_meet, port).result(300) == [2.0, 2.0, 2.0, 3.0, 7]
