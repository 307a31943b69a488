"""What was sent and is not answered yet: expected at its endpoint for a short time, so that a burst follows its first.

Kept by prompt and apart from what was answered, within a small limit of its own: whatever engines turn down, fail at or
never answer cannot displace what they hold. An answer moves the prompt on, a failure drops it, and so does time.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from headwater_router.index.dispatches import unmask

NO_TICKET = 0


class Pending:
    """Blocks by holder, in a table as that of `Dispatches`. A ticket stands for one prompt on its way to one holder."""

    def __init__(self, ttl: float) -> None:
        self.masks: dict[int, int] = {}
        self._ttl = ttl
        self._held: dict[int, dict[int, int]] = {}
        """Per holder: block hash to the number of prompts on their way that have it."""
        self._open: OrderedDict[int, tuple[int, Sequence[int], float]] = OrderedDict()
        """Ticket to holder, blocks, and until when it counts, which is their order."""
        self._last_ticket = NO_TICKET

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, holder: int, chain: Sequence[int], known: Mapping[int, int], now: float, room: int) -> int:
        """A prompt of these blocks was sent there. Left out are those that it is `known` to hold, a table as that of
        `Dispatches`, and those beyond `room` blocks of this holder."""
        bit, known_by = 1 << holder, known.get
        # Whoever holds a block holds those before it: they are used whenever it is, and let go later.
        new = len(chain)
        while new and not known_by(chain[new - 1], 0) & bit:
            new -= 1
        if new == len(chain):
            return NO_TICKET
        held = self._held.get(holder)
        if held is None:
            held = self._held[holder] = {}
        keys, masks = chain[new:], self.masks
        for place, key in enumerate(keys):
            count = held.get(key)
            if count is not None:
                held[key] = count + 1
            elif len(held) < room:
                held[key] = 1
                masks[key] = masks.get(key, 0) | bit
            else:
                keys = keys[:place]
                break
        self._last_ticket += 1
        self._open[self._last_ticket] = (holder, keys, now + self._ttl)
        return self._last_ticket

    def drop(self, ticket: int) -> None:
        """Nothing, where its time was over already."""
        found = self._open.pop(ticket, None)
        if found is None:
            return
        holder, keys, _ = found
        held, bit = self._held[holder], 1 << holder
        for key in keys:
            count = held.get(key)
            if count == 1:
                del held[key]
                unmask(self.masks, key, bit)
            elif count is not None:
                held[key] = count - 1

    def discard(self, holder: int, keys: Sequence[int]) -> None:
        """These are not expected any more, whatever is on its way."""
        held = self._held.get(holder)
        if held:
            for key in keys:
                if held.pop(key, None) is not None:
                    unmask(self.masks, key, 1 << holder)

    def expire(self, now: float) -> None:
        while self._open:
            oldest = next(iter(self._open))
            if self._open[oldest][2] > now:
                return
            self.drop(oldest)

    def trim(self, room: int) -> None:
        """Drop the oldest prompts of those holders that have more blocks than this."""
        for ticket, (holder, _, _) in list(self._open.items()):
            if len(self._held[holder]) > room:
                self.drop(ticket)

    def forget(self, holder: int) -> None:
        self.discard(holder, list(self._held.get(holder, ())))
        self._held.pop(holder, None)
        for ticket in [ticket for ticket, (each, _, _) in self._open.items() if each == holder]:
            del self._open[ticket]

    def check(self) -> None:
        """Raises AssertionError if the table, the counts and the prompts say different things."""
        rebuilt: dict[int, int] = {}
        counts: dict[tuple[int, int], int] = {}
        for holder, keys, _ in self._open.values():
            for key in keys:
                counts[holder, key] = counts.get((holder, key), 0) + 1
        for holder, held in self._held.items():
            for key, count in held.items():
                assert 0 < count <= counts[holder, key]
                rebuilt[key] = rebuilt.get(key, 0) | 1 << holder
        assert rebuilt == self.masks
