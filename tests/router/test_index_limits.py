"""Whatever an engine publishes: no crash, no long stretch of work, no more memory than its share, no wrong claim."""

import os
import random
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, encode, to_frames
from headwater.prefix import token_chain
from headwater_router.index import PrefixIndex
from headwater_router.index.feed import Feed
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.prefixes import _PIECE
from headwater_router.index.stored import StoredBlocks, token_root
from headwater_router.index.subscriber import EventSubscriber, Publisher
from tests.router.indexing import apply, exhaust, token_depths

RECORDED = Path(__file__).parent.parent / "fixtures" / "vllm-0.32.0"
MESSAGES = int(os.environ.get("HEADWATER_FUZZ", "1000"))
"""To be set to a million for a long run."""


def blocks(count: int, first: int = 0, size: int = 16) -> BlockStored:
    """A prompt of its own for each `first`."""
    ids = [first % 2**32, *range(1, count * size)]
    return BlockStored(list(range(first, first + count)), None, ids, size, None, "GPU", None)


def chain(event: BlockStored) -> list[int]:
    return token_chain(token_root(), event.token_ids, KEY_TOKENS)


# Work in one stretch


def test_a_long_prompt_is_taken_over_in_pieces() -> None:
    index = PrefixIndex()
    event = blocks(8000)
    found = [token_depths(index, chain(event)).get("pod", 0) for _ in index.apply("pod", 0, 0, [event])]
    assert len(found) >= 8000 // _PIECE
    assert all(0 < now - before <= _PIECE for before, now in pairwise(found))
    assert token_depths(index, chain(event)) == {"pod": 8000}


@pytest.mark.parametrize("way", ["cleared", "lost", "removed"])
def test_a_large_cache_is_dropped_in_pieces(way: str) -> None:
    index = PrefixIndex()
    apply(index, "pod", 0, blocks(8000), rank=1)
    events = {"cleared": [AllBlocksCleared()], "lost": [], "removed": [BlockRemoved(list(range(8000)), "GPU")]}[way]
    pieces = 0
    for _ in index.apply("pod", 7 if way == "lost" else 1, 1, events):
        pieces += 1
        index.check()
    assert pieces >= 8000 // _PIECE
    assert index.size().stored == 0


def test_events_of_unknown_types_are_work_too() -> None:
    assert len(list(PrefixIndex().apply("pod", 0, 0, [None] * 4000))) >= 4000 // _PIECE


def test_what_comes_of_an_endpoint_that_was_forgotten_meanwhile_is_dropped() -> None:
    index = PrefixIndex()
    pieces = index.apply("pod", 0, 0, [blocks(8000)])
    next(pieces)
    index.forget("pod")
    exhaust(pieces)
    assert index.size().endpoints == index.size().stored == 0
    index.check()


# Memory


def test_an_endpoint_has_so_many_publishers_and_no_more() -> None:
    index = PrefixIndex()
    for number in range(1100):
        apply(index, "pod", 0, msgspec.structs.replace(blocks(1), group_idx=number % 1000), rank=number)
    assert index.size().unusable == 1100 - 1024
    index.check()


def test_media_without_end_are_not_kept() -> None:
    index = PrefixIndex()
    for number in range(100):
        apply(index, "pod", number, msgspec.structs.replace(blocks(1), medium=f"tape-{number}"))
    (media,) = index._stored._holders[0].trees[0, None]._copies.values()
    assert len(media) <= 8


async def test_when_a_subscriber_ends_the_index_forgets_its_endpoint() -> None:
    index = PrefixIndex()
    apply(index, "pod", 0, blocks(3))
    with pytest.raises(Exception, match="Invalid argument"):
        await EventSubscriber(index, ["pod"], Publisher("nowhere")).run()
    assert index.size().endpoints == 0


# Claims


def test_an_engine_that_holds_more_than_its_share_is_not_said_to_be_known_completely() -> None:
    index = PrefixIndex(max_entries=40)
    apply(index, "pod", 0, blocks(20))
    assert index.complete("pod")
    apply(index, "pod", 1, blocks(3, first=1000))
    assert not index.complete("pod")
    apply(index, "pod", 2, AllBlocksCleared())
    assert index.complete("pod")


def test_an_endpoint_that_joins_may_take_from_what_is_known_of_another() -> None:
    index = PrefixIndex(max_entries=40)
    apply(index, "pod", 0, blocks(20))
    apply(index, "other", 0)
    assert (index.complete("pod"), index.complete("other")) == (False, True)
    index.check()


def test_a_batch_that_turns_out_to_be_unreadable_counts_as_lost() -> None:
    index = PrefixIndex()
    feed = Feed(index, "pod")
    good, bad = blocks(2), {"type": "BlockStored", "block_hashes": "?"}
    exhaust(feed.take(to_frames(b"", 0, msgspec.msgpack.encode([0.0, [good, bad], 0]))))
    exhaust(feed.take(to_frames(b"", 1, encode(EventBatch(0.0, [blocks(1, first=50)])))))
    assert not index.complete("pod")
    assert token_depths(index, chain(good)) == {}
    assert token_depths(index, chain(blocks(1, first=50))) == {"pod": 1}


# Anything at all


def recorded_payloads() -> Iterator[bytes]:
    data = (RECORDED / "kv-events.bin").read_bytes()
    at = 0
    while at < len(data):
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        for frame in range(count):
            (length,) = struct.unpack_from(">I", data, at)
            if frame == 2:
                yield data[at + 4 : at + 4 + length]
            at += 4 + length


SGLANG = [
    [1.0, [["BlockStored", [-7, 8, 9], None, [1, 2, 3], 1, None, "GPU"]], 0],
    [1.0, [["BlockStored", [10], 9, [4], 1, None, "GPU"], ["BlockRemoved", [-7]], ["AllBlocksCleared"]], None],
]
ODD: list[Any] = [
    None, True, -1, 0, 1, 16, 1023, 1024, 2**31, 2**32, 2**63, 2**64 - 1, -(2**63), 0.5, float("nan"), float("inf"),
    "", "x", "BlockStored", "\ud7ff" * 600, b"", b"x" * 65, [], {}, [[]], {"type": "BlockStored"}, [0] * 3000,
    [[]] * 3000, {"": {"": []}}, msgspec.msgpack.Ext(5, b"x"),
]  # fmt: skip


def mutated(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The same with something in it replaced, left out, or doubled."""
    if depth == 6 or rng.random() < 0.15 or not value or not isinstance(value, list | dict):
        return rng.choice(ODD)
    if isinstance(value, dict):
        name = rng.choice(list(value))
        if rng.random() < 0.2:
            return {key: each for key, each in value.items() if key != name}
        return {**value, name: mutated(rng, value[name], depth + 1)}
    place = rng.randrange(len(value))
    match rng.randrange(5):
        case 0:
            return value[:place] + value[place + 1 :]
        case 1:
            return value[:place] + [value[place]] * rng.randrange(2, 5) + value[place:]
        case _:
            return [*value[:place], mutated(rng, value[place], depth + 1), *value[place + 1 :]]


def damaged(rng: random.Random, payload: bytes) -> bytes:
    at = rng.randrange(len(payload) + 1)
    match rng.randrange(4):
        case 0:
            return payload[:at]
        case 1:
            return payload[:at] + rng.randbytes(rng.randrange(1, 9)) + payload[at + rng.randrange(9) :]
        case 2:
            return payload[:at] + b"\x91" * rng.randrange(2000) + payload[at:]
        case _:
            return bytes(each ^ (rng.random() < 0.01) << rng.randrange(8) for each in payload)


class Watched(StoredBlocks):
    """Remembers the most work between two pauses."""

    most = 0
    _work = 0

    @property
    def work(self) -> int:
        return self._work

    @work.setter
    def work(self, value: int) -> None:
        self._work = value
        self.most = max(self.most, value)


def test_no_message_breaks_the_index_or_takes_long_in_one_stretch() -> None:
    large = [EventBatch(0.0, [blocks(3000, size=4)]), EventBatch(0.0, [blocks(2, size=16_384)])]
    recorded = [*recorded_payloads(), *map(msgspec.msgpack.encode, SGLANG), *map(encode, large)]
    values = [msgspec.msgpack.decode(payload) for payload in recorded]
    index = PrefixIndex(max_entries=4000)
    index._stored = watched = Watched()
    feeds = [Feed(index, f"pod-{number}") for number in range(3)]
    sequence = 0
    for number in range(MESSAGES):
        rng = random.Random(number)
        payload = rng.choice(recorded)
        if rng.random() < 0.6:
            value = rng.choice(values)
            for _ in range(rng.randrange(1, 4)):
                value = mutated(rng, value)
            payload = msgspec.msgpack.encode(value)
        elif rng.random() < 0.8:
            payload = damaged(rng, payload)
        sequence = sequence + 1 if rng.random() < 0.95 else rng.choice([0, sequence, 2**62])
        exhaust(rng.choice(feeds).take(to_frames(b"", sequence, payload)))
        if number % 50 == 0:
            index.check()
    index.check()
    assert index.size().stored > 0
    assert watched.most < 8 * _PIECE
