"""Who holds which prefix: one index with two sources.

*Dispatches* are what we sent where: known at once and for every engine, but only a guess at what is cached. They are
keyed by the chain of the prompt's text; what other routers tell of theirs stands among them. What is not answered yet
is `Pending`, apart from the rest. *Stored blocks* are what engines say in their KV events: the truth, keyed by the
chain of the token ids, and a moment late; so for an endpoint whose events we follow, what was sent is pending by token
ids, too, for the time from the dispatch to the event.

Every table maps a block's hash to a set of endpoints as the bits of an int. A prompt is matched against all endpoints
in one walk along its chain, which ends where the last of them drops out. Memory has a hard limit, which is shared out
evenly among the endpoints; within its share, each is kept as its own cache is, least recently used first out.

Endpoints are known by their ids. One that restarts has a new id, and `forget` drops the old.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from headwater.events import AllBlocksCleared, Event
from headwater_router.index.dispatches import Dispatches
from headwater_router.index.match import Match, walk
from headwater_router.index.pending import NO_TICKET, Pending
from headwater_router.index.stored import StoredBlocks

log = structlog.get_logger(__name__)

_PENDING_TEXT: Final = 8_192
"""Blocks of text on their way to one endpoint: some seventy of the longest prompts."""
_PENDING_TOKENS: Final = 65_536
"""The same in spans of token ids."""
_PIECE: Final = 512
"""Blocks and keys of KV events that are taken over in one stretch: about a millisecond."""


@dataclass(slots=True)
class _Feed:
    """One publisher of an endpoint: a data-parallel rank."""

    sequence: int
    complete: bool
    """We have heard of everything that it holds."""


Tickets = tuple[int, int]
"""Of a prompt on its way to an endpoint: by its text, and by its token ids. To be handed back when it is answered, or
comes to nothing."""


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
        self._share = max_entries
        """What one endpoint may have of all entries."""
        self._dispatches = Dispatches()
        self._sent = Pending(unconfirmed_ttl)
        self._expected = Pending(unconfirmed_ttl)
        self._stored = StoredBlocks()
        self.holders: dict[str, int] = {}
        """By endpoint, if anything was ever known of it. To be read only."""
        self.names: list[str] = []
        """The endpoint of each holder. To be read only, and for holders that `match` gave just now."""
        self._free: list[int] = []
        self._capacity: dict[str, int] = {}
        self._feeds: dict[str, dict[int, _Feed]] = {}
        self._publishers: dict[str, int] = {}
        self._gaps = 0
        self.changes = 0
        """Times that an endpoint got a holder or lost it."""
        self.on_answer: Callable[[str, Sequence[int]], None] | None = None
        """Told what `answered` is told; not what is `shared`."""

    def match(self, text_chain: Sequence[int], now: float) -> Match:
        """Leading blocks of the prompt's text that each endpoint should hold."""
        self._sent.expire(now)
        return walk(text_chain, self._dispatches.masks, self._sent.masks)

    def match_tokens(self, token_chain: Sequence[int], now: float) -> Match:
        """The same for the prompt's token ids, in spans of `KEY_TOKENS`, for endpoints whose KV events we follow."""
        self._expected.expire(now)
        return walk(token_chain, self._stored.masks, self._expected.masks)

    def confirmed(self, target_id: str, token_chain: Sequence[int], depth: int) -> bool:
        """Whether KV events, and nothing else, say that the endpoint holds just these leading spans."""
        holder = self.holders.get(target_id)
        if holder is None or not self.complete(target_id):
            return False
        return all(self._stored.holds(holder, key) for key in token_chain[:depth])

    def follows(self, target_id: str) -> bool:
        """Whether KV events of this endpoint come in."""
        return target_id in self._feeds

    def expect(self, target_id: str, publishers: int) -> None:
        """Events of this endpoint will come from so many. Until all are heard, it is not known completely."""
        self._publishers[target_id] = publishers

    def complete(self, target_id: str) -> bool:
        """Whether its KV events tell all that it holds: we heard them from the start, lost none, and kept all."""
        feeds = self._feeds.get(target_id)
        if feeds is None or len(feeds) < self._publishers.get(target_id, 1):
            return False
        holder = self.holders[target_id]
        return all(feed.complete and self._stored.whole(holder, rank) for rank, feed in feeds.items())

    def dispatched(
        self, target_id: str, text_chain: Sequence[int], token_chain: Sequence[int] | None, now: float, capacity: int
    ) -> Tickets:
        """A prompt goes there. `capacity`: units of text (see `headwater.prefix`) that its cache has room for."""
        holder = self._holder(target_id)
        self._capacity[target_id] = capacity
        share = self._share // 8
        text = self._sent.add(holder, text_chain, self._dispatches.masks, now, min(capacity, _PENDING_TEXT, share))
        tokens = NO_TICKET
        if token_chain is not None and target_id in self._feeds:
            tokens = self._expected.add(holder, token_chain, self._stored.masks, now, min(_PENDING_TOKENS, share))
        return text, tokens

    def answered(self, target_id: str, text_chain: Sequence[int], tickets: Tickets, units: int | None = None) -> None:
        """The prompt was computed there, so its blocks are cached. Nothing, if the endpoint was forgotten since.

        `units`: as in `ended`, where the answer is over by now; else that is to follow."""
        holder = self.holders.get(target_id)
        if holder is not None:
            # What is pending by token ids stays until the KV event comes, which may be after the answer.
            self._sent.drop(tickets[0])
            capacity, share = self._capacity.get(target_id, 0), self._share // 4
            if units is None:
                self._dispatches.begun(holder, text_chain, capacity, share)
            else:
                self._dispatches.ended(holder, text_chain, units, capacity, share)
            if text_chain and self.on_answer is not None:
                self.on_answer(target_id, text_chain)

    def ended(self, target_id: str, text_chain: Sequence[int], units: int) -> None:
        """The answer to a prompt that was `answered` is over, however it ended. `units`: of text, that it had, as far
        as that is known. They are cached, too."""
        holder = self.holders.get(target_id)
        if holder is not None:
            self._dispatches.ended(holder, text_chain, units, self._capacity.get(target_id, 0), self._share // 4)

    def shared(self, target_id: str, text_chain: Sequence[int], capacity: int) -> None:
        """Another router's prompt was answered there. `capacity`: as in `dispatched`, which knows better, and wins."""
        holder = self._holder(target_id)
        capacity = self._capacity.setdefault(target_id, capacity)
        self._dispatches.add(holder, text_chain, capacity, self._share // 4)

    def latest(self, target_id: str, most: int) -> list[tuple[int, int]]:
        """Blocks of text that it should hold, with their units, those that were used last first."""
        holder = self.holders.get(target_id)
        return [] if holder is None else self._dispatches.latest(holder, most)

    def recalled(self, target_id: str, blocks: Iterable[tuple[int, int]], capacity: int) -> None:
        """What another router told in answer to a question by that. `capacity`: as in `shared`."""
        holder = self._holder(target_id)
        capacity = self._capacity.setdefault(target_id, capacity)
        self._dispatches.recall(holder, blocks, capacity, self._share // 4)

    def withdrawn(self, tickets: Tickets) -> None:
        """The prompt was not computed there: the request failed, or was cancelled before its first byte."""
        self._sent.drop(tickets[0])
        self._expected.drop(tickets[1])

    def apply(self, target_id: str, sequence: int, rank: int, events: Iterable[Event | None]) -> Iterator[None]:
        """Take over a batch of the endpoint's KV events. Where a batch before it was lost, what that publisher said is
        dropped first: it may have removed any of it.

        Works while it is iterated over, and pauses after each piece of work, for whoever else wants the thread.
        Raises what `events` raises; then the batch counts as lost.
        """
        holder = self._holder(target_id)
        feeds = self._feeds.setdefault(target_id, {})
        for gone in self._take_over(target_id, holder, feeds, sequence, rank, events):
            if gone:
                self._expected.discard(holder, gone)
            if self._stored.work >= _PIECE:
                self._stored.work = 0
                yield
                if self._feeds.get(target_id) is not feeds:  # Forgotten meanwhile.
                    return

    def _take_over(
        self,
        target_id: str,
        holder: int,
        feeds: dict[int, _Feed],
        sequence: int,
        rank: int,
        events: Iterable[Event | None],
    ) -> Iterator[Sequence[int]]:
        """Gives the keys that are gone by the engine's word."""
        feed = feeds.get(rank)
        if feed is None:
            feed = feeds[rank] = _Feed(sequence - 1, complete=sequence == 0)
        elif sequence != feed.sequence + 1:
            yield from self._gap(target_id, holder, rank, feed, sequence)
        cleared = False
        for event in events:
            if event is None:
                self._stored.work += 1
                yield ()
                continue
            yield from self._stored.apply(holder, rank, event, self._share // 2)
            if isinstance(event, AllBlocksCleared):
                feed.complete = cleared = True
        feed.sequence = sequence
        # An engine that repeats its content for a new subscriber clears first, too; only an empty cache forgets texts.
        if cleared and not self._stored.holds_any(holder):
            self._dispatches.trim(holder, 0)
            self._sent.forget(holder)
            self._expected.forget(holder)

    def lost(self, target_id: str, rank: int) -> Iterator[None]:
        """A publisher of the endpoint is gone, and another one may be in its place. Works as `apply` does."""
        feeds = self._feeds.get(target_id)
        if feeds is None or feeds.pop(rank, None) is None:
            return
        self._gaps += 1
        holder = self.holders[target_id]
        for gone in self._stored.purge(holder, rank):
            self._expected.discard(holder, gone)
            if self._stored.work >= _PIECE:
                self._stored.work = 0
                yield
                if self._feeds.get(target_id) is not feeds:
                    return

    def forget(self, target_id: str) -> None:
        """The endpoint is gone, or its cache is."""
        self._feeds.pop(target_id, None)
        self._publishers.pop(target_id, None)
        self._capacity.pop(target_id, None)
        holder = self.holders.pop(target_id, None)
        if holder is not None:
            for table in (self._dispatches, self._sent, self._expected, self._stored):
                table.forget(holder)
            self._free.append(holder)
            self._changed()

    def blocks(self, target_id: str) -> int:
        """That an endpoint is believed to hold, of text and of token ids."""
        holder = self.holders.get(target_id)
        if holder is None:
            return 0
        return self._dispatches.count(holder) + self._stored.count(holder)

    def size(self) -> IndexSize:
        dispatched = len(self._dispatches) + len(self._sent) + len(self._expected)
        return IndexSize(len(self.holders), dispatched, len(self._stored), self._gaps, self._stored.unusable)

    def check(self) -> None:
        """Raises AssertionError where the tables disagree or are too large. Takes time in proportion to their size."""
        for table in (self._dispatches, self._sent, self._expected, self._stored):
            table.check()
        size = self.size()
        assert size.dispatched + size.stored <= self._max_entries
        assert sorted([*self.holders.values(), *self._free]) == list(range(len(self.names)))

    def _holder(self, target_id: str) -> int:
        holder = self.holders.get(target_id)
        if holder is not None:
            return holder
        if self._free:
            holder = self._free.pop()
            self.names[holder] = target_id
        else:
            holder = len(self.names)
            self.names.append(target_id)
        self.holders[target_id] = holder
        self._changed()
        for other in self.holders.values():
            self._dispatches.trim(other, self._share // 4)
            self._stored.trim(other, self._share // 2)
        self._sent.trim(self._share // 8)
        self._expected.trim(self._share // 8)
        return holder

    def _changed(self) -> None:
        """An endpoint got a holder, or lost it."""
        self.changes += 1
        self._share = self._max_entries // max(1, len(self.holders))

    def _gap(self, target_id: str, holder: int, rank: int, feed: _Feed, sequence: int) -> Iterator[Sequence[int]]:
        self._gaps += 1
        expected, was_complete = feed.sequence + 1, feed.complete
        feed.complete = sequence == 0
        dropped = 0
        for gone in self._stored.purge(holder, rank):
            dropped += len(gone)
            yield gone
        if was_complete:
            log.warning(
                "KV events were lost; cached prefixes are estimated until the engine reports anew",
                endpoint=target_id,
                rank=rank,
                expected=expected,
                found=sequence,
                dropped=dropped,
            )
