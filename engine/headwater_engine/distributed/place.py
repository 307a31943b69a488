"""Where a rank stands in its group, and where the group meets: what its process is told as it starts."""

import os
from typing import Final

import msgspec

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
