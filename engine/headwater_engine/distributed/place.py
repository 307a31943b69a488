"""Where a rank stands in its group, and where the group meets: what its process is told as it starts."""

import hashlib
import os
import socket
from typing import Final

import msgspec
import zmq
from zmq.utils import z85

from headwater_engine.config import EngineSettings

VARIABLE: Final = "HEADWATER_ENGINE_PLACE"
"""Has a `Place` as JSON, where there is more than one rank."""


class Meeting(msgspec.Struct, frozen=True):
    """Where the ranks of one group find one another."""

    store: str
    """Of torch.distributed: tcp://HOST:PORT of the first rank, or file://PATH where all are on one machine."""
    steps: str
    """The ZMQ endpoint at which the first rank tells steps."""
    secret: str
    """Who knows it belongs to the group."""

    def keys(self) -> tuple[bytes, bytes]:
        """Of the first rank, public and private, for ZMQ's CURVE: without the secret nobody gets past the handshake."""
        private = z85.encode(hashlib.sha256(self.secret.encode()).digest())
        return zmq.curve_public(private), private

    def names(self) -> str:
        """What the names in torch's store begin with. It shows them to anybody, and nothing follows from this."""
        return hashlib.sha256(f"names {self.secret}".encode()).hexdigest()


class Place(msgspec.Struct, frozen=True):
    rank: int
    size: int
    """Ranks of the group, on all machines."""
    local_rank: int
    """Among those of this machine: the number of its GPU."""
    local_size: int
    meeting: Meeting


def places(settings: EngineSettings, meeting: Meeting) -> list[Place]:
    """Of the ranks on this machine: each has as many, and the first machine the first ones."""
    size = settings.tensor_parallel_size
    here = size // settings.nodes
    return [Place(settings.node_rank * here + local, size, local, here, meeting) for local in range(here)]


def own_place() -> Place | None:
    """That of this process; None: it is alone."""
    text = os.environ.get(VARIABLE)
    return None if text is None else msgspec.json.decode(text, type=Place)


_LOOPBACK: Final = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}


def listening_host(host: str) -> str | None:
    """Where the first machine listens, if the others find it at `host`; None: at all its addresses.

    In a pod the name of the host is not that of an address here. But who says a loopback one means to be private.
    """
    return _LOOPBACK.get(host)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError."""
    here = listening_host(host)
    if here is None and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    family = socket.AF_INET6 if here == "::1" else socket.AF_INET
    return socket.create_server((here or "", port), family=family)
