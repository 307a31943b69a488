"""KV events: tells the world which blocks the prefix cache holds, in vLLM's wire format.

Three ZMQ frames a batch, `[topic, sequence number, msgpack]`; see `headwater.events`. Whoever subscribes is told all
that is there first (an AllBlocksCleared, then every block), so a router that starts late or reconnects after a gap
knows as much as one that was there from the start. The others hear nothing of it. Block hashes are chained over salt
and token ids and mean nothing outside.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final

import xxhash
import zmq

from headwater.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, encode, to_frames
from headwater_engine.cache.radix_tree import Node

MESSAGE_BLOCKS: Final = 4096
"""That an event is of, and a message, at most: whoever listens has limits, and others to serve meanwhile."""
_PRESENT: Final = b"kv"
"""Topic of what happens."""
_PAST: Final = b"past"
"""What topics of newcomers begin with."""
_FIRST: Final = 1 << 32
"""Sequence number of the first thing that happens: what has been before has the numbers before it."""
_SHARE: Final = 20
"""Newcomers wait for so many times as long as it took to tell the last ones everything."""


class EventLog:
    """Collects one step's changes of the tree as events; runs of blocks along one path become one event."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._events: list[Event] = []
        self._last_stored: Node | None = None

    def stored(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        seed = parent.hash if parent.hash is not None else xxhash.xxh3_64_intdigest(node.salt.encode())
        node.hash = xxhash.xxh3_64_intdigest(array("I", node.tokens).tobytes(), seed=seed)
        last = self._events[-1] if self._events else None
        if parent is self._last_stored and isinstance(last, BlockStored) and len(last.block_hashes) < MESSAGE_BLOCKS:
            last.block_hashes.append(node.hash)
            last.token_ids.extend(node.tokens)
            if last.extra_keys is not None:
                last.extra_keys.append(None)
        else:
            self._events.append(self._stored_event(node, parent.hash))
        self._last_stored = node

    def _stored_event(self, node: Node, parent_hash: int | None) -> BlockStored:
        assert node.hash is not None
        # As vLLM: the salt stands beside the first block of a prompt, and binds the others through the chain.
        salt = [node.salt] if node.salt and parent_hash is None else None
        return BlockStored(
            block_hashes=[node.hash],
            parent_block_hash=parent_hash,
            token_ids=list(node.tokens),
            block_size=self._block_size,
            lora_id=None,
            medium="CPU",
            lora_name=None,
            extra_keys=[salt],
        )

    def removed(self, node: Node) -> None:
        assert node.hash is not None
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved) and len(last.block_hashes) < MESSAGE_BLOCKS:
            last.block_hashes.append(node.hash)
        else:
            self._events.append(BlockRemoved(block_hashes=[node.hash], medium="CPU"))
        self._last_stored = None

    def cleared(self) -> None:
        self._events.append(AllBlocksCleared())
        self._last_stored = None

    def drain(self) -> Sequence[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        self._last_stored = None
        return events


class EventPublisher:
    """Sends an `EventLog`'s events to all subscribers. Never blocks: to one that is too slow, ZMQ drops batches, and
    the gap in the sequence numbers tells it so.

    Who gets which message is said by its topic, and which topics a subscriber gets is ours to say (ZMQ's manual mode):
    all get what happens, and newcomers, under a topic of their own, what has been before. Its messages are numbered so
    that the next thing that happens follows: to each subscriber, numbers go up by one.
    """

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_MANUAL, 1)
        self._socket.setsockopt(zmq.SNDHWM, 100_000)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._sequence = _FIRST
        self._past = count()
        self._busy_until = 0.0

    @property
    def endpoint(self) -> str:
        """With the port that was bound, where the setting left it open (`tcp://127.0.0.1:*`)."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def welcome(self, everything: Callable[[], Sequence[Event]]) -> None:
        """Tell those that have subscribed since the last call `everything`, as it is after all that was published.

        That may take long: so it is done at most a twentieth of the time, for all that came meanwhile together.
        """
        began = time.monotonic()
        if began < self._busy_until or not self._socket.poll(0):
            return
        topic = _PAST + next(self._past).to_bytes(8, "big")
        if self._let_in(topic):
            parts = list(_parts(everything()))
            for number, part in enumerate(parts, self._sequence - len(parts)):
                self._send(topic, number, part)
            now = time.monotonic()
            self._busy_until = now + _SHARE * (now - began)

    def _let_in(self, topic: bytes) -> bool:
        """Subscribe newcomers to what happens, and to `topic`. Says whether there are any."""
        found = False
        while self._socket.poll(0):
            asked = self._socket.recv()
            if asked[:1] == b"\x01" and _PRESENT.startswith(asked[1:]):
                self._socket.setsockopt(zmq.SUBSCRIBE, _PRESENT)
                self._socket.setsockopt(zmq.SUBSCRIBE, topic)
                found = True
        return found

    def publish(self, events: Sequence[Event]) -> None:
        for part in _parts(events):
            self._send(_PRESENT, self._sequence, part)
            self._sequence += 1

    def _send(self, topic: bytes, number: int, events: Sequence[Event]) -> None:
        payload = encode(EventBatch(ts=time.time(), events=list(events)))
        self._socket.send_multipart(to_frames(topic, number, payload))

    def close(self) -> None:
        self._context.destroy()


def _parts(events: Sequence[Event]) -> Iterator[list[Event]]:
    """In order, and none empty. What clears is never alone if anything follows: that would say the cache is empty."""
    part: list[Event] = []
    blocks = 0
    for event in events:
        size = 0 if isinstance(event, AllBlocksCleared) else len(event.block_hashes)
        if blocks and blocks + size > MESSAGE_BLOCKS:
            yield part
            part, blocks = [], 0
        part.append(event)
        blocks += size
    if part:
        yield part
