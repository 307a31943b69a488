"""How the processes of a group find one another, each from its own `Place`."""

from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from headwater_engine.distributed.place import Place, listening
from headwater_engine.distributed.ranks import ProcessRanks
from headwater_engine.distributed.shared_memory import share_memory
from headwater_engine.errors import RankError

_LONGEST_WAIT: Final = timedelta(hours=1)
"""For another rank: it may have to fetch the weights first. Whether it lives is watched elsewhere (`group.py`)."""


def _tcp_store(place: Place, host: str, port: str) -> TCPStore:
    """Raises RankError where its port is taken."""
    host, first = host.strip("[]"), place.rank == 0
    descriptor = None
    if first:  # torch would listen at all addresses, also where the leader's is a loopback one
        try:
            descriptor = listening(host, int(port)).detach()
        except OSError as error:
            raise RankError(f"the store of the group cannot listen on port {port}: {error.strerror}.") from error
    return TCPStore(
        host, int(port), place.size, first, _LONGEST_WAIT, wait_for_workers=False, master_listen_fd=descriptor
    )


def find_ranks(place: Place, device: torch.device) -> ProcessRanks:
    """Become the rank of `place`, once all others are there. Raises RankError."""
    address = place.meeting.store
    if address.startswith("file://"):
        store: Store = FileStore(address.removeprefix("file://"), place.size)
    else:
        store = _tcp_store(place, *address.removeprefix("tcp://").rsplit(":", 1))
    # Who does not know the secret finds none of the addresses that ranks leave there for one another.
    store = PrefixStore(place.meeting.secret, store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=_LONGEST_WAIT,
        device_id=device if device.type == "cuda" else None,
    )
    ranks = ProcessRanks(device)
    on_one_machine = place.local_size == place.size
    return share_memory(ranks, place.meeting.secret) if on_one_machine and device.type == "cpu" else ranks
