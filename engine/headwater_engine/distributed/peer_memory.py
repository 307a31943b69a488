"""What ranks say to one another on one machine's GPUs, which see one another's memory: small sums take one kernel."""

import structlog
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric_memory

from headwater_engine.distributed.ranks import ProcessRanks
from headwater_engine.kernels.triton.all_reduce import BYTES, LARGEST, MOST_RANKS, Peers, sum_over_peers

log = structlog.get_logger(__name__)

_TRIAL = LARGEST // 4
"""Numbers of 4 bytes, in the largest sum that is tried."""


class PeerRanks(ProcessRanks):
    def __init__(self, device: torch.device, memory: Tensor, addresses: list[int]) -> None:
        """`memory`: of this rank, BYTES that are 0, as all others' are; `addresses`: where it finds each."""
        super().__init__(device)
        self._memory = memory
        place = torch.tensor(addresses, dtype=torch.int64, device=device)
        self._peers = Peers(self.rank, self.size, place, torch.zeros(1, dtype=torch.int64, device=device))

    def sum(self, x: Tensor) -> Tensor:
        if x.nbytes > LARGEST or not x.is_contiguous():
            return super().sum(x)
        sum_over_peers(x, self._peers)
        return x


def share_peers(ranks: ProcessRanks, device: torch.device) -> ProcessRanks:
    """The same ranks, all of which are on this machine, by their GPUs' memory where all see one another's."""
    if ranks.size > MOST_RANKS:
        return ranks
    addresses: list[int] | None = None
    memory = symmetric_memory.empty(BYTES, dtype=torch.uint8, device=device).zero_()
    try:
        assert dist.group.WORLD is not None
        addresses = list(symmetric_memory.rendezvous(memory, dist.group.WORLD).buffer_ptrs)
    except RuntimeError as error:
        log.warning("GPUs do not see one another's memory; NCCL does all sums", reason=str(error).splitlines()[0])
    # Which also waits until the memory of all is 0.
    if not ranks.least(int(addresses is not None)) or addresses is None:
        return ranks
    peers = PeerRanks(device, memory, addresses)
    if not ranks.least(int(_adds_up(peers, ranks, device))):
        log.warning("what GPUs read of one another's memory is not what was written; NCCL does all sums")
        return ranks
    return peers


def _adds_up(peers: PeerRanks, ranks: ProcessRanks, device: torch.device) -> bool:
    """Whether sums over memory are what they should be: a wrong one would be a wrong answer that nobody notices.

    Whole numbers, so that the order of adding does not matter; several sums, since each finds the traces of others.
    """
    parts = [torch.arange(size, dtype=torch.float32, device=device) % 7 + peers.rank for size in (_TRIAL, 1, _TRIAL)]
    expected = ranks.sum(torch.cat(parts))
    return torch.equal(torch.cat([peers.sum(part) for part in parts]), expected)
