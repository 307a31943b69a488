"""The messages of one publisher of KV events, put in order, be they as they were published or asked for again.

vLLM and SGLang keep their latest messages (10,000 unless told otherwise) and repeat them to whoever asks, from a
sequence number on. So a router that starts late, or was cut off, can hear what it missed. Two things are to be found
out on the way: whether the publisher is still the one that was heard before, which its own last message shows if it
repeats it to the letter; and whether something is missing, which sequence numbers show. Our own engine needs no asking:
it tells newcomers all that it holds, with numbers that begin anew, and the index takes it so.

No socket and no clock: `index.subscriber` has those.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from enum import Enum, auto

import structlog
from xxhash import xxh3_64_intdigest

from headwater.events import EventDecodeError, Frames, decode, from_frames
from headwater_router.index.prefixes import PrefixIndex

log = structlog.get_logger(__name__)

Ask = Callable[[int], AsyncIterator[Frames]]
"""Has the publisher repeat its messages from a sequence number on. Raises UnansweredError."""


class UnansweredError(Exception):
    """It does not say that it has repeated all."""


class Verdict(Enum):
    """What a message that was asked for means."""

    KNOWN = auto()
    NEXT = auto()
    """To be taken."""
    MISSING = auto()
    """Others should have come before it."""
    OTHER = auto()
    """It does not come from the publisher that was heard before. What that one said is to be dropped."""


class Feed:
    """See the module. What gives an iterator works while it is iterated over, and pauses now and then."""

    def __init__(self, index: PrefixIndex, target_id: str) -> None:
        self._index = index
        self._target_id = target_id
        self._last: int | None = None
        """Sequence number of the last message that was taken."""
        self._last_digest = 0
        self._rank = 0
        self.trusted = True
        """Whether the publisher is known to be the one that sent the last message. To be read only."""
        self._repeated = -1
        """Up to here messages came because they were asked for: as they were published, they may come once more."""
        self._readable = True

    def begin(self) -> None:
        """A new connection: behind it may be another publisher."""
        self.trusted = self._last is None
        self._repeated = -1

    @property
    def wanted(self) -> int:
        """Where to ask from: what comes next, or the last that is known, to compare it."""
        if self._last is None:
            return 0
        return self._last + 1 if self.trusted else self._last

    def missed(self, frames: Sequence[bytes]) -> bool:
        """Whether others should have come before this message, as it was published."""
        try:
            sequence = from_frames(frames).seq
        except EventDecodeError:
            return False
        return self._last is not None and sequence > self._last + 1

    def take(self, frames: Sequence[bytes]) -> Iterator[None]:
        """A message as it was published."""
        message = self._read(frames)
        if message is not None and message.seq > self._repeated:
            if not self.trusted:
                # Though its number may fit: another one may have published as many as the one before.
                yield from self.drop()
            yield from self._apply(message)

    def judge(self, message: Frames, *, bridge: bool) -> Verdict:
        """A message that was asked for. `bridge`: what is missing before it will not come any more."""
        if not self.trusted:
            if message.seq != self._last or xxh3_64_intdigest(message.payload) != self._last_digest:
                return Verdict.OTHER
            self.trusted = True
        if self._last is None:
            return Verdict.NEXT
        if message.seq <= self._last:
            return Verdict.KNOWN
        return Verdict.NEXT if message.seq == self._last + 1 or bridge else Verdict.MISSING

    def take_repeated(self, message: Frames) -> Iterator[None]:
        """The next one, which was asked for."""
        yield from self._apply(message)
        self._repeated = message.seq

    def all_repeated(self) -> Iterator[None]:
        """There is no more. If not even the last message was repeated, the publisher is another one than before."""
        if not self.trusted:
            yield from self.drop()

    def drop(self) -> Iterator[None]:
        """What the publisher said counts no more."""
        self._last, self.trusted = None, True
        yield from self._index.lost(self._target_id, self._rank)

    def _apply(self, message: Frames) -> Iterator[None]:
        try:
            batch = decode(message.payload)
            yield from self._index.apply(self._target_id, message.seq, batch.dp_rank, batch.events)
        except EventDecodeError as error:
            self._unreadable(error)
            return
        self._last, self._rank, self._readable = message.seq, batch.dp_rank, True
        self._last_digest = xxh3_64_intdigest(message.payload)

    def _read(self, frames: Sequence[bytes]) -> Frames | None:
        """None for what is no message of a publisher."""
        try:
            message = from_frames(frames)
        except EventDecodeError as error:
            self._unreadable(error)
            return None
        return message if message.seq >= 0 else None

    def _unreadable(self, error: EventDecodeError) -> None:
        if self._readable:
            # Once, not for each that follows.
            log.warning("KV events could not be read", endpoint=self._target_id, error=str(error))
        self._readable = False


async def catch_up(feed: Feed, ask: Ask) -> None:
    """Take what was missed; ask again where a part of the answer was lost and it is of use, and make do without it
    where it is not. Raises UnansweredError where nothing was answered."""
    asked, whole = -1, False
    while not whole:
        bridge, asked = asked == feed.wanted, feed.wanted
        whole = await _take_repeated(feed, ask(asked), bridge=bridge) or bridge


async def _take_repeated(feed: Feed, messages: AsyncIterator[Frames], *, bridge: bool) -> bool:
    """Says whether nothing is missing. Raises UnansweredError."""
    answered = False
    try:
        async for message in messages:
            answered = True
            match feed.judge(message, bridge=bridge):
                case Verdict.NEXT:
                    await in_pieces(feed.take_repeated(message))
                case Verdict.MISSING:
                    return False
                case Verdict.OTHER:
                    await in_pieces(feed.drop())
                    return False
            await asyncio.sleep(0)
    except UnansweredError:
        if not answered:
            raise
        return False
    whole = feed.trusted
    await in_pieces(feed.all_repeated())
    return whole


async def in_pieces(work: Iterator[None]) -> None:
    """With a turn for others between the pieces."""
    for _ in work:
        await asyncio.sleep(0)
