"""How the processes of a group find one another, each from its own `Place`."""

import os
from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from headwater_engine.distributed.losses import losses_named
from headwater_engine.distributed.place import Place
from headwater_engine.distributed.ranks import ProcessRanks, Ranks
from headwater_engine.distributed.shared_memory import share_memory
from headwater_engine.distributed.store import store_of
from headwater_engine.errors import LoadError, LostRankError, RankError

_LONGEST_WAIT: Final = timedelta(hours=1)
"""For another rank: it may have to fetch the weights first. Whether it lives is watched elsewhere (`group.py`)."""
_TO_CONNECT: Final = timedelta(minutes=1)
"""To a rank on another machine, which is there. An address that leads nowhere would be tried until then."""


def find_ranks(place: Place, device: torch.device) -> ProcessRanks:
    """Become the rank of `place`, once all others are there. Raises RankError."""
    with store_of(place) as store:
        try:
            ranks = _join(place, device, store)
        except dist.DistStoreError as error:  # of the file in which addresses are left on one machine
            raise RankError(f"the store of the group fails: {str(error).splitlines()[0].rstrip('.')}.") from error
        except LostRankError as error:
            network = "NCCL_SOCKET_IFNAME" if device.type == "cuda" else "GLOO_SOCKET_IFNAME"
            raise RankError(
                f"it cannot reach the other ranks: {error.reason}. {network} names the network between them; here it "
                f"is {os.environ.get(network)!r}."
            ) from error
    if place.local_size < place.size:
        return ranks
    if device.type == "cpu":
        return share_memory(ranks)
    from headwater_engine.distributed.peer_memory import share_peers  # triton, which torch for CPUs comes without

    return share_peers(ranks, device)


@losses_named()
def _join(place: Place, device: torch.device, store: Store) -> ProcessRanks:
    on_gpus, several_machines = device.type == "cuda", place.local_size < place.size
    if several_machines:  # who has come is there to be connected to
        store.set(f"here/{place.rank}", "")
        store.wait([f"here/{rank}" for rank in range(place.size)])
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=_TO_CONNECT if several_machines else _LONGEST_WAIT,
        device_id=device if on_gpus else None,
    )
    assert dist.group.WORLD is not None
    dist.group.WORLD.set_timeout(_LONGEST_WAIT)
    ranks = ProcessRanks(device, store)
    ranks.least(0)  # all have joined
    return ranks


def check_alike(ranks: Ranks, device: torch.device, what: Mapping[str, str]) -> None:
    """That all ranks have the same of what is named. Raises LoadError, and on all of them."""
    words = [int.from_bytes(sha256(value.encode()).digest()[:8], "big", signed=True) for value in what.values()]
    everybody = ranks.exchange(torch.tensor(words, device=device)).cpu()
    for rank, place in (everybody != everybody[0]).nonzero().tolist():
        raise LoadError(f"Rank {rank} has another {list(what)[place]} than rank 0.")
