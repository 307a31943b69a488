"""Who holds which prefix: one index with two sources.

*Dispatches* are what we sent where: known at once and for every engine, but only a guess at what is cached. They are
keyed by the chain of the prompt's text; what other routers tell of theirs stands among them. *Stored blocks* are what
engines say in their KV events: the truth, keyed by the chain of the token ids, and a moment late; so for an endpoint
whose events we follow, dispatches are kept by token ids, too, and count for the time from the dispatch to the event.

Every table maps a block's hash to a set of endpoints as the bits of an int. A prompt is matched against all endpoints
in one walk along its chain, which ends where the last of them drops out. Memory has a hard limit, which is shared out
evenly among the endpoints; within its share, each is kept as its own cache is, least recently used first out.

Endpoints are known by their ids. One that restarts has a new id, and `forget` drops the old.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from headwater.events import AllBlocksCleared, EventBatch
from headwater_router.index.dispatches import Dispatches
from headwater_router.index.stored import StoredBlocks

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Feed:
    """One publisher of an endpoint: a data-parallel rank."""

    sequence: int
    complete: bool
    """We have heard of everything that it holds."""


@dataclass(slots=True, frozen=True)
class IndexSize:
    """What the index holds, for metrics."""

    endpoints: int
    dispatched: int
    stored: int
    gaps: int
    """Times that a publisher's messages were lost and what it had said was dropped."""
    unusable: int
    """Blocks in KV events that could not be translated into keys."""


class PrefixIndex:
    """See the module. All methods are for one thread; none blocks."""

    def __init__(self, *, max_entries: int = 2_000_000, unconfirmed_ttl: float = 30.0) -> None:
        """`max_entries`: hard limit over all endpoints and sources; an entry is about 250 bytes.
        `unconfirmed_ttl`: seconds that a dispatch counts without an answer; long enough for a long prefill."""
        self._max_entries = max_entries
        self._dispatches = Dispatches(unconfirmed_ttl)
        self._expected = Dispatches(unconfirmed_ttl)
        self._stored = StoredBlocks()
        self._holders: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._capacity: dict[str, int] = {}
        self._feeds: dict[str, dict[int, _Feed]] = {}
        self._gaps = 0
        self.on_answer: Callable[[str, Sequence[int]], None] | None = None
        """Told what `answered` is told; not what is `shared`."""

    def match(self, text_chain: Sequence[int], now: float) -> dict[str, int]:
        """Leading blocks of the prompt's text that each endpoint should hold; those that hold none are left out."""
        depths = {}
        for holder, depth in _depths(text_chain, self._dispatches.masks.get):
            live = self._dispatches.live_depth(holder, text_chain, depth, now)
            if live:
                depths[self._names[holder]] = live
        return depths

    def match_tokens(self, token_chain: Sequence[int], now: float) -> dict[str, int]:
        """The same for the prompt's token ids, in spans of `KEY_TOKENS`, for endpoints whose KV events we follow."""
        stored, expected = self._stored.masks.get, self._expected.masks.get
        depths = {}
        for holder, depth in _depths(token_chain, lambda key: stored(key, 0) | expected(key, 0)):
            while depth and not self._stored.holds(holder, token_chain[depth - 1]):
                live = self._expected.live_depth(holder, token_chain[:depth], depth, now)
                if live == depth:
                    break
                depth = live
            if depth:
                depths[self._names[holder]] = depth
        return depths

    def confirmed(self, target_id: str, token_chain: Sequence[int], depth: int) -> bool:
        """Whether KV events, and nothing else, say that the endpoint holds just these leading spans."""
        holder = self._holders.get(target_id)
        if holder is None or not self.complete(target_id):
            return False
        return all(self._stored.holds(holder, key) for key in token_chain[:depth])

    def follows(self, target_id: str) -> bool:
        """Whether KV events of this endpoint come in."""
        return target_id in self._feeds

    def complete(self, target_id: str) -> bool:
        """Whether its KV events tell all that it holds: we heard them from the start, and lost none."""
        feeds = self._feeds.get(target_id)
        return feeds is not None and all(feed.complete for feed in feeds.values())

    def dispatched(
        self, target_id: str, text_chain: Sequence[int], token_chain: Sequence[int] | None, now: float, capacity: int
    ) -> None:
        """A prompt goes there. `capacity`: blocks of text that its cache has room for."""
        holder = self._holder(target_id)
        self._capacity[target_id] = capacity
        self._dispatches.add(holder, text_chain, now, min(capacity, self._share(4)))
        if token_chain is not None and target_id in self._feeds:
            self._expected.add(holder, token_chain, now, self._share(4))

    def answered(self, target_id: str, text_chain: Sequence[int]) -> None:
        """The prompt was computed there, so its blocks are cached. Nothing, if the endpoint was forgotten since."""
        holder = self._holders.get(target_id)
        if holder is not None:
            capacity = min(self._capacity.get(target_id, 0), self._share(4))
            self._dispatches.confirm(holder, text_chain, capacity)
            if text_chain and self.on_answer is not None:
                self.on_answer(target_id, text_chain)

    def shared(self, target_id: str, text_chain: Sequence[int], capacity: int) -> None:
        """Another router's prompt was answered there. `capacity`: as in `dispatched`, which knows better, and wins."""
        holder = self._holder(target_id)
        capacity = self._capacity.setdefault(target_id, capacity)
        self._dispatches.confirm(holder, text_chain, min(capacity, self._share(4)))

    def withdrawn(self, target_id: str, text_chain: Sequence[int], token_chain: Sequence[int] | None) -> None:
        """The prompt was not computed there: the request failed, or was cancelled before its first byte."""
        holder = self._holders.get(target_id)
        if holder is not None:
            self._dispatches.withdraw(holder, text_chain)
            self._expected.withdraw(holder, token_chain or ())

    def apply(self, target_id: str, sequence: int, batch: EventBatch) -> None:
        """Take over a batch of the endpoint's KV events. Where a batch before it was lost, what that publisher said is
        dropped first: it may have removed any of it."""
        holder = self._holder(target_id)
        feeds = self._feeds.setdefault(target_id, {})
        feed = feeds.get(batch.dp_rank)
        if feed is None:
            feed = feeds[batch.dp_rank] = _Feed(sequence, complete=sequence == 0)
        elif sequence != feed.sequence + 1:
            self._gap(target_id, batch.dp_rank, feed, sequence)
            feed.complete = sequence == 0
        feed.sequence = sequence
        cleared = False
        for event in batch.events:
            gone = self._stored.apply(holder, batch.dp_rank, event, self._share(2))
            self._expected.discard(holder, gone)
            if isinstance(event, AllBlocksCleared):
                feed.complete = cleared = True
        # An engine that repeats its content for a new subscriber clears first, too; only an empty cache forgets texts.
        if cleared and not self._stored.holds_any(holder):
            self._dispatches.trim(holder, 0)
            self._expected.trim(holder, 0)

    def forget(self, target_id: str) -> None:
        """The endpoint is gone, or its cache is."""
        self._feeds.pop(target_id, None)
        self._capacity.pop(target_id, None)
        holder = self._holders.pop(target_id, None)
        if holder is not None:
            for table in (self._dispatches, self._expected, self._stored):
                table.forget(holder)
            self._free.append(holder)

    def size(self) -> IndexSize:
        dispatched = len(self._dispatches) + len(self._expected)
        return IndexSize(len(self._holders), dispatched, len(self._stored), self._gaps, self._stored.unusable)

    def check(self) -> None:
        """Raises AssertionError where the tables disagree or are too large. Takes time in proportion to their size."""
        for table in (self._dispatches, self._expected, self._stored):
            table.check()
        assert len(self._dispatches) + len(self._expected) + len(self._stored) <= self._max_entries
        assert sorted([*self._holders.values(), *self._free]) == list(range(len(self._names)))

    def _holder(self, target_id: str) -> int:
        holder = self._holders.get(target_id)
        if holder is not None:
            return holder
        if self._free:
            holder = self._free.pop()
            self._names[holder] = target_id
        else:
            holder = len(self._names)
            self._names.append(target_id)
        self._holders[target_id] = holder
        for other in self._holders.values():
            self._dispatches.trim(other, self._share(4))
            self._expected.trim(other, self._share(4))
            self._stored.trim(other, self._share(2))
        return holder

    def _share(self, part: int) -> int:
        """What one endpoint may have of the nth part of all entries."""
        return self._max_entries // (part * len(self._holders))

    def _gap(self, target_id: str, rank: int, feed: _Feed, sequence: int) -> None:
        self._gaps += 1
        dropped = self._stored.purge(self._holders[target_id], rank)
        log.warning(
            "KV events were lost; cached prefixes are estimated until the engine reports anew",
            endpoint=target_id,
            rank=rank,
            expected=feed.sequence + 1,
            found=sequence,
            dropped=len(dropped),
        )


def _depths(chain: Sequence[int], holders_of: Callable[[int], int | None]) -> Iterator[tuple[int, int]]:
    """For each holder of the first block, how many blocks it holds without a break: (holder, depth)."""
    alive = -1
    depth = 0
    for key in chain:
        mask = alive & (holders_of(key) or 0)
        if mask != alive:
            if depth:
                yield from _each(alive & ~mask, depth)
            alive = mask
            if not mask:
                return
        depth += 1
    if depth:
        yield from _each(alive, depth)


def _each(mask: int, depth: int) -> Iterator[tuple[int, int]]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1, depth
        mask ^= lowest
