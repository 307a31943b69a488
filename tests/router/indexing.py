"""What tests of the index and of pickers share: batches taken over in one go, matches by name."""

from collections import deque
from collections.abc import Iterable, Sequence

from headwater.events import Event
from headwater_router.index import PrefixIndex
from headwater_router.index.match import Match


def apply(index: PrefixIndex, target_id: str, sequence: int, *events: Event | None, rank: int = 0) -> None:
    exhaust(index.apply(target_id, sequence, rank, events))


def exhaust(pieces: Iterable[None]) -> None:
    deque(pieces, maxlen=0)


def depths(index: PrefixIndex, chain: Sequence[int], now: float) -> dict[str, int]:
    """Leading blocks of a text by endpoint, for those that hold any."""
    return _by_name(index, index.match(chain, now))


def token_depths(index: PrefixIndex, chain: Sequence[int], now: float = 0.0) -> dict[str, int]:
    return _by_name(index, index.match_tokens(chain, now))


def _by_name(index: PrefixIndex, match: Match) -> dict[str, int]:
    found = {name: match.depth(holder) for name, holder in index.holders.items()}
    return {name: depth for name, depth in found.items() if depth}
