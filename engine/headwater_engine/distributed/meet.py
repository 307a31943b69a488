"""How the processes of a group find one another, each from its own `Place`."""

from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Final

import torch
import torch.distributed as dist

from headwater_engine.distributed.place import Place
from headwater_engine.distributed.ranks import ProcessRanks, Ranks
from headwater_engine.distributed.shared_memory import share_memory
from headwater_engine.distributed.store import store_of
from headwater_engine.errors import LoadError

_LONGEST_WAIT: Final = timedelta(hours=1)
"""For another rank: it may have to fetch the weights first. Whether it lives is watched elsewhere (`group.py`)."""


def find_ranks(place: Place, device: torch.device) -> ProcessRanks:
    """Become the rank of `place`, once all others are there. Raises RankError."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with store_of(place) as store:
        dist.init_process_group(
            backend,
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=_LONGEST_WAIT,
            device_id=device if device.type == "cuda" else None,
        )
        ranks = ProcessRanks(device, store)
        ranks.least(0)  # all have joined
    if place.local_size < place.size:
        return ranks
    if device.type == "cpu":
        return share_memory(ranks)
    from headwater_engine.distributed.peer_memory import share_peers  # triton, which torch for CPUs comes without

    return share_peers(ranks, device)


def check_alike(ranks: Ranks, device: torch.device, what: Mapping[str, str]) -> None:
    """That all ranks have the same of what is named. Raises LoadError, and on all of them."""
    words = [int.from_bytes(sha256(value.encode()).digest()[:8], "big", signed=True) for value in what.values()]
    everybody = ranks.exchange(torch.tensor(words, device=device)).cpu()
    for rank, place in (everybody != everybody[0]).nonzero().tolist():
        raise LoadError(f"Rank {rank} has another {list(what)[place]} than rank 0.")
