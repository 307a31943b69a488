"""What every kind of source is asked for: its files, what it promises of them, and where their bytes come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headwater.fetch.choice import Wish
from headwater.fetch.download import File
from headwater.fetch.patience import Lines
from headwater.fetch.transport import Transport


@dataclass(frozen=True, slots=True)
class Asking:
    """How to ask, and what for."""

    transport: Transport
    lines: Lines
    wish: Wish


@dataclass(frozen=True, slots=True)
class Listing:
    state: str
    """What the source is now: a commit, a digest; empty where it has no name for that."""
    files: Sequence[File]
    left_out: Sequence[str] = ()
    layers: Sequence[File] = field(default=())
    """Archives, of which the later ones replace what is in the earlier ones. Their names are their digests."""


class Source(Protocol):
    """A module of this package."""

    async def list_files(self, source: str, revision: str, asking: Asking) -> Listing:
        """Raises FetchError."""
