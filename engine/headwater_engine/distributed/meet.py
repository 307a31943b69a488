"""How the processes of a group find one another, each from its own `Place`."""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from headwater_engine.distributed.place import Place, listening
from headwater_engine.distributed.ranks import ProcessRanks, Ranks
from headwater_engine.distributed.shared_memory import share_memory
from headwater_engine.errors import LoadError, RankError

_LONGEST_WAIT: Final = timedelta(hours=1)
"""For another rank: it may have to fetch the weights first. Whether it lives is watched elsewhere (`group.py`)."""


def find_ranks(place: Place, device: torch.device) -> ProcessRanks:
    """Become the rank of `place`, once all others are there. Raises RankError."""
    address = place.meeting.store
    listener: int | None = None
    if address.startswith("file://"):
        store: Store = FileStore(address.removeprefix("file://"), place.size)
    else:
        store, listener = _tcp_store(place, *address.removeprefix("tcp://").rsplit(":", 1))
    store = PrefixStore(place.meeting.names(), store)
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
    ranks.least(0)  # all have joined
    if listener is not None:
        _listen_no_more(listener)
    if place.local_size < place.size:
        return ranks
    if device.type == "cpu":
        return share_memory(ranks)
    from headwater_engine.distributed.peer_memory import share_peers  # triton, which torch for CPUs comes without

    return share_peers(ranks, device)


def _tcp_store(place: Place, host: str, port: str) -> tuple[TCPStore, int | None]:
    """And the descriptor at which it listens, on the first rank. Raises RankError where its port is taken."""
    host, first = host.strip("[]"), place.rank == 0
    descriptor = None
    if first:  # torch would listen at all addresses, also where the leader's is a loopback one
        try:
            descriptor = listening(host, int(port)).detach()
        except OSError as error:
            raise RankError(f"the store of the group cannot listen on port {port}: {error.strerror}.") from error
    store = TCPStore(
        host, int(port), place.size, first, _LONGEST_WAIT, wait_for_workers=False, master_listen_fd=descriptor
    )
    return store, descriptor


def _listen_no_more(descriptor: int) -> None:
    """The store takes whatever anybody sends, and keeps it; now nobody is to come any more.

    It has no word for that, and would go round and round at a socket that is shut down. So it keeps the descriptor, and
    there is nothing behind it.
    """
    with socket.socket() as nothing:
        os.dup2(nothing.fileno(), descriptor, inheritable=False)


def check_alike(ranks: Ranks, device: torch.device, what: Mapping[str, str]) -> None:
    """That all ranks have the same of what is named. Raises LoadError, and on all of them."""
    words = [int.from_bytes(sha256(value.encode()).digest()[:8], "big", signed=True) for value in what.values()]
    everybody = ranks.exchange(torch.tensor(words, device=device)).cpu()
    for rank, place in (everybody != everybody[0]).nonzero().tolist():
        raise LoadError(f"Rank {rank} has another {list(what)[place]} than rank 0.")
