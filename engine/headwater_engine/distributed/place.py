"""Where a rank stands in its group, and where the group meets: what its process is told as it starts."""

import hashlib
import os
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
    """Where they leave their addresses (`store.py`): tcp://HOST:PORT of the first rank, or file://PATH where all are on
    one machine."""
    steps: str
    """The ZMQ endpoint at which the first rank tells steps."""
    secret: str
    """Who knows it belongs to the group."""

    def keys(self) -> tuple[bytes, bytes]:
        """Of the first rank, public and private, for ZMQ's CURVE: without the secret nobody gets past the handshake."""
        private = z85.encode(hashlib.sha256(self.secret.encode()).digest())
        return zmq.curve_public(private), private

    def listen(self, socket: "zmq.Socket[bytes]", endpoint: str, longest: int) -> None:
        """Have a socket listen there, for messages of so many bytes at most, to those who know the secret.

        What a stranger sends is thrown away before anything is kept of it, and what is said he cannot read. Raises
        zmq.ZMQError.
        """
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys()[1])
        socket.setsockopt(zmq.MAXMSGSIZE, longest)
        kind, _, rest = endpoint.partition("://")
        if kind == "tcp":
            host, port = rest.rsplit(":", 1)
            here = listening_host(host.strip("[]"))
            endpoint = f"tcp://{'[::1]' if here == '::1' else here or '*'}:{port}"
        socket.bind(endpoint)

    def connect(self, socket: "zmq.Socket[bytes]", endpoint: str) -> None:
        """Have a socket speak with the one that listens there."""
        public, private = zmq.curve_keypair()
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.keys()[0])
        socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, private)
        socket.connect(endpoint)


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
