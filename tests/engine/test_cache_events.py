"""What the engine says of its cache: in messages that whoever listens can read, however much there is to say."""

import itertools
from collections.abc import Iterator

import pytest
import zmq

from headwater.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, decode, from_frames
from headwater_engine.cache.events import MESSAGE_BLOCKS, EventLog, EventPublisher
from headwater_engine.cache.prefix_cache import PrefixCache

SIZE = 16


def cache_of(blocks: int) -> tuple[PrefixCache, EventLog]:
    """Filled by one long prompt and by many short ones."""
    log = EventLog(SIZE)
    cache = PrefixCache(blocks, SIZE, listener=log)
    for prompt in [list(range(blocks // 2 * SIZE)), *([each] * SIZE for each in range(blocks // 2))]:
        lease = cache.open(prompt, "")
        assert cache.grow(lease, len(prompt))
        cache.commit(lease, prompt, len(prompt), 0)
        cache.close(lease)
    return cache, log


class Subscriber:
    """What one hears that subscribes to all."""

    def __init__(self, context: zmq.Context, publisher: EventPublisher) -> None:
        self._socket = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(publisher.endpoint)
        assert publisher._socket.poll(60_000), "the publisher hears of it"
        self.last: int | None = None

    def hear(self) -> list[Event | None]:
        """The events of the next message, whose number follows that of the one before."""
        frames = from_frames(self._socket.recv_multipart())
        assert self.last is None or frames.seq == self.last + 1
        self.last = frames.seq
        return list(decode(frames.payload).events)

    def hear_all(self, events: int) -> list[list[Event | None]]:
        """So many, message by message."""
        messages: list[list[Event | None]] = []
        while sum(map(len, messages)) < events:
            messages.append(self.hear())
        return messages


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


@pytest.fixture
def publisher() -> Iterator[EventPublisher]:
    publisher = EventPublisher("tcp://127.0.0.1:*")
    yield publisher
    publisher.close()


def everything_in(cache: PrefixCache) -> list[Event]:
    log = EventLog(SIZE)
    cache.announce(log)
    return list(log.drain())


def blocks_of(event: Event | None) -> int:
    return len(event.block_hashes) if isinstance(event, BlockStored | BlockRemoved) else 0


def test_a_large_cache_is_announced_in_several_messages(context: zmq.Context, publisher: EventPublisher) -> None:
    cache, _ = cache_of(20_000)
    subscriber = Subscriber(context, publisher)
    publisher.welcome(lambda: everything_in(cache))
    messages = subscriber.hear_all(len(everything_in(cache)))
    assert len(messages) >= 5
    assert all(0 < sum(map(blocks_of, events)) <= MESSAGE_BLOCKS for events in messages)
    events = list(itertools.chain(*messages))
    assert isinstance(events[0], AllBlocksCleared)
    hashes = [each for event in events if isinstance(event, BlockStored) for each in event.block_hashes]
    assert len(set(hashes)) == len(hashes) == cache.cached


def test_what_is_removed_at_once_is_told_in_several_messages(context: zmq.Context, publisher: EventPublisher) -> None:
    cache, log = cache_of(20_000)
    log.drain()
    prompt = [7] * (20_000 * SIZE)
    assert cache.grow(cache.open(prompt, "other"), len(prompt))
    subscriber = Subscriber(context, publisher)
    publisher.welcome(list)
    events = log.drain()
    publisher.publish(events)
    messages = subscriber.hear_all(len(events))
    assert all(0 < sum(map(blocks_of, events)) <= MESSAGE_BLOCKS for events in messages)
    assert sum(blocks_of(event) for events in messages for event in events) == 20_000


def test_what_a_newcomer_is_told_reaches_nobody_else(context: zmq.Context, publisher: EventPublisher) -> None:
    cache, _ = cache_of(20)
    first = Subscriber(context, publisher)
    publisher.welcome(lambda: everything_in(cache))
    assert first.hear_all(len(everything_in(cache)))
    publisher._busy_until = 0.0
    second = Subscriber(context, publisher)
    publisher.welcome(lambda: everything_in(cache))
    publisher.publish([BlockRemoved(block_hashes=[1], medium="CPU")])
    # Numbers follow one another for both, and the first one hears what happens next as the next thing.
    assert [type(event) for event in first.hear()] == [BlockRemoved]
    *_, last = itertools.chain(*second.hear_all(len(everything_in(cache)) + 1))
    assert isinstance(last, BlockRemoved)
    assert first.last == second.last


def test_many_newcomers_cost_one_walk_over_the_cache() -> None:
    publisher = EventPublisher("inproc://events")  # where what is subscribed to is known at once
    context = publisher._context
    walks = 0

    def everything() -> list[Event]:
        nonlocal walks
        walks += 1
        return [AllBlocksCleared()]

    subscribers = [Subscriber(context, publisher) for _ in range(20)]
    publisher.welcome(everything)
    publisher._busy_until = float("inf")  # as if it had taken long
    subscribers += [Subscriber(context, publisher) for _ in range(20)]
    publisher.welcome(everything)
    assert walks == 1, "those that came since have to wait"
    publisher._busy_until = 0.0
    publisher.welcome(everything)
    assert walks == 2
    assert all(isinstance(subscriber.hear()[0], AllBlocksCleared) for subscriber in subscribers)
    publisher.close()


def test_who_leaves_and_who_wants_another_topic_costs_no_walk(context: zmq.Context, publisher: EventPublisher) -> None:
    with context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"another")
        socket.connect(publisher.endpoint)
        assert publisher._socket.poll(60_000)
        publisher.welcome(lambda: pytest.fail("for nobody"))
        socket.setsockopt(zmq.UNSUBSCRIBE, b"another")
        assert publisher._socket.poll(60_000)
        publisher.welcome(lambda: pytest.fail("for nobody"))
