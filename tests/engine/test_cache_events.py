"""What the engine says of its cache: in messages that whoever listens can read, however much there is to say."""

import itertools

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


def published(log: EventLog) -> list[list[Event | None]]:
    """The events of each message, as a subscriber reads them."""
    publisher = EventPublisher("tcp://127.0.0.1:*")
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 30_000)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(publisher.endpoint)
        assert publisher._socket.poll(30_000)
        assert publisher.has_new_subscriber()
        events = log.drain()
        publisher.publish(events)
        messages: list[list[Event | None]] = []
        while sum(map(len, messages)) < len(events):
            frames = from_frames(socket.recv_multipart())
            assert frames.seq == len(messages)
            messages.append(list(decode(frames.payload).events))
    publisher.close()
    return messages


def blocks_of(event: Event | None) -> int:
    return len(event.block_hashes) if isinstance(event, BlockStored | BlockRemoved) else 0


def test_a_large_cache_is_announced_in_several_messages() -> None:
    cache, log = cache_of(20_000)
    log.drain()
    cache.announce()
    messages = published(log)
    assert len(messages) >= 5
    assert all(0 < sum(map(blocks_of, events)) <= MESSAGE_BLOCKS for events in messages)
    events = list(itertools.chain(*messages))
    assert isinstance(events[0], AllBlocksCleared)
    hashes = [each for event in events if isinstance(event, BlockStored) for each in event.block_hashes]
    assert len(set(hashes)) == len(hashes) == cache.cached


def test_what_is_removed_at_once_is_told_in_several_messages() -> None:
    cache, log = cache_of(20_000)
    log.drain()
    prompt = [7] * (20_000 * SIZE)
    assert cache.grow(cache.open(prompt, "other"), len(prompt))
    messages = published(log)
    assert all(0 < sum(map(blocks_of, events)) <= MESSAGE_BLOCKS for events in messages)
    assert sum(blocks_of(event) for events in messages for event in events) == 20_000
