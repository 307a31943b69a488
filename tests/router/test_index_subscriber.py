"""The subscriber keeps the index true to what an engine publishes over a real socket."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socket as tcp_socket

import pytest
import zmq
import zmq.asyncio

from headwater.events import MOST_BYTES, BlockStored, EventBatch, decode, encode, from_frames, to_frames
from headwater.prefix import token_chain
from headwater_router.index import PrefixIndex
from headwater_router.index.feed import Feed
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.stored import token_root
from headwater_router.index.subscriber import EventSubscriber, Publisher
from tests.router.indexing import exhaust, token_depths

RECORDED = Path(__file__).parent.parent / "fixtures" / "vllm-0.32.0"
IDS = list(range(64))
CHAIN = token_chain(token_root(), IDS, KEY_TOKENS)


def message(sequence: int, first: int, parent: int | None) -> list[bytes]:
    """One block of 16 tokens more."""
    block = BlockStored([first], parent, IDS[16 * first : 16 * first + 16], 16, None, "GPU", None)
    return to_frames(b"", sequence, encode(EventBatch(0.0, [block])))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def publisher(address: str = "tcp://127.0.0.1:*") -> AsyncIterator[tuple[zmq.asyncio.Socket, str]]:
    with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(address)
        yield socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


def two_addresses() -> tuple[str, str]:
    """With ports that follow one another, and both are free."""
    while True:
        with tcp_socket() as one, tcp_socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 1}"


def depth(index: PrefixIndex) -> int:
    return token_depths(index, CHAIN).get("pod", 0)


async def test_events_of_a_publisher_fill_the_index() -> None:
    index = PrefixIndex()
    async with publisher() as (socket, address), asyncio.TaskGroup() as group:
        task = group.create_task(EventSubscriber(index, ["pod"], Publisher(address)).run())
        assert await socket.recv() == b"\x01"  # Subscribed.
        await socket.send_multipart(message(0, 0, None))
        await socket.send_multipart(message(1, 1, 0))
        await until(lambda: depth(index) == 2)
        assert index.complete("pod")
        task.cancel()


async def test_a_publisher_that_restarts_is_found_again_and_believed_anew() -> None:
    index = PrefixIndex()
    async with asyncio.TaskGroup() as group:
        async with publisher() as (socket, address):
            task = group.create_task(EventSubscriber(index, ["pod"], Publisher(address)).run())
            await socket.recv()
            await socket.send_multipart(message(0, 0, None))
            await socket.send_multipart(message(1, 1, 0))
            await until(lambda: depth(index) == 2)
        async with publisher(address) as (socket, _):
            await socket.recv()
            await socket.send_multipart(message(0, 0, None))
            await until(lambda: depth(index) == 1)
            assert (index.size().gaps, index.complete("pod")) == (1, True)
        task.cancel()


async def test_a_message_that_is_too_large_is_not_taken_in_and_the_next_one_is() -> None:
    index = PrefixIndex()
    async with publisher() as (socket, address), asyncio.TaskGroup() as group:
        task = group.create_task(EventSubscriber(index, ["pod"], Publisher(address)).run())
        assert await socket.recv() == b"\x01"
        await socket.send_multipart(message(0, 0, None))
        await socket.send_multipart(to_frames(b"", 1, bytes(4 * MOST_BYTES + 1)))
        async with asyncio.timeout(60):
            while await socket.recv() != b"\x01":  # It hangs up, and comes back.
                pass
        await socket.send_multipart(message(0, 0, None))
        await socket.send_multipart(message(1, 1, 0))
        await until(lambda: depth(index) == 2)
        task.cancel()


async def test_nothing_is_left_of_an_endpoint_whose_subscriber_ended() -> None:
    """Also where it was forgotten before, and events came after that."""
    index = PrefixIndex()
    async with publisher() as (socket, address), asyncio.TaskGroup() as group:
        task = group.create_task(EventSubscriber(index, ["pod"], Publisher(address)).run())
        await socket.recv()
        index.forget("pod")
        await socket.send_multipart(message(0, 0, None))
        await until(lambda: depth(index) == 1)
        task.cancel()
    assert index.size().endpoints == 0
    index.check()


class Repeating:
    """A publisher that repeats what it has published, as vLLM and SGLang do. SGLang's answers have no topic."""

    def __init__(self, context: zmq.asyncio.Context, *, topics: bool) -> None:
        self.published = context.socket(zmq.XPUB)
        self._asked = context.socket(zmq.ROUTER)
        for socket in (self.published, self._asked):
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind("tcp://127.0.0.1:*")
        self.messages: list[list[bytes]] = []
        self.firsts: list[int] = []
        self._topics = topics

    @property
    def address(self) -> Publisher:
        events, replay = (each.getsockopt_string(zmq.LAST_ENDPOINT) for each in (self.published, self._asked))
        return Publisher(events, replay)

    async def publish(self, message: list[bytes], *, lost: bool = False) -> None:
        self.messages.append(message)
        if not lost:
            await self.published.send_multipart(message)

    async def answer(self) -> None:
        while True:
            client, delimiter, first = await self._asked.recv_multipart()
            self.firsts.append(int.from_bytes(first, "big"))
            for frames in [*self.messages, to_frames(b"", -1, b"")]:
                if frames[1] >= first:
                    await self._asked.send_multipart([client, delimiter, *frames[0 if self._topics else 1 :]])


@pytest.mark.parametrize("topics", [True, False])
async def test_what_was_published_before_is_asked_for_and_so_is_what_was_lost(topics: bool) -> None:
    index = PrefixIndex()
    with zmq.asyncio.Context() as context:
        engine = Repeating(context, topics=topics)
        await engine.publish(message(0, 0, None))
        await engine.publish(message(1, 1, 0))
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(engine.answer())
            following = group.create_task(EventSubscriber(index, ["pod"], engine.address).run())
            await until(lambda: depth(index) == 2)
            assert index.complete("pod")
            await engine.published.recv()
            await engine.publish(message(2, 2, 1), lost=True)
            await engine.publish(message(3, 3, 2))
            await until(lambda: depth(index) == 4)
            assert index.complete("pod")
            assert (index.size().gaps, engine.firsts) == (0, [0, 2])
            answering.cancel()
            following.cancel()
        context.destroy(linger=0)


async def test_an_engine_that_does_not_answer_is_followed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_router.index.subscriber._PATIENCE", 0.01)
    index = PrefixIndex()
    async with publisher() as (socket, address), asyncio.TaskGroup() as group:
        task = group.create_task(EventSubscriber(index, ["pod"], Publisher(address, "tcp://127.0.0.1:1")).run())
        await socket.recv()
        await socket.send_multipart(message(0, 0, None))
        await until(lambda: depth(index) == 1)
        task.cancel()


async def test_ranks_have_ports_of_their_own_and_all_must_be_heard() -> None:
    index = PrefixIndex()
    address, next_one = two_addresses()
    async with publisher(address) as (first, _), asyncio.TaskGroup() as group, publisher(next_one) as (second, _):
        subscriber = EventSubscriber(index, ["pod"], Publisher(address))
        task = group.create_task(subscriber.run())
        await first.recv()
        await first.send_multipart(message(0, 0, None))
        await until(lambda: index.complete("pod"))
        subscriber.ranks = 2
        await second.recv()
        assert not index.complete("pod")
        batch = decode(from_frames(message(0, 1, None)).payload)
        events = [event for event in batch.events if event is not None]
        await second.send_multipart(to_frames(b"", 0, encode(EventBatch(0.0, events, dp_rank=1))))
        await until(lambda: index.complete("pod"))
        task.cancel()


async def test_each_rank_may_have_a_target_of_its_own() -> None:
    index = PrefixIndex()
    address, next_one = two_addresses()
    async with publisher(address) as (first, _), asyncio.TaskGroup() as group, publisher(next_one) as (second, _):
        task = group.create_task(EventSubscriber(index, ["pod.0", "pod.1"], Publisher(address), ranks=2).run())
        await first.recv()
        await second.recv()
        batch = decode(from_frames(message(0, 1, None)).payload)
        events = [event for event in batch.events if event is not None]
        await second.send_multipart(to_frames(b"", 0, encode(EventBatch(0.0, events, dp_rank=1))))
        await until(lambda: index.complete("pod.1"))
        assert not index.follows("pod.0")
        assert (index.blocks("pod.0"), index.blocks("pod.1")) == (0, 1)
        await first.send_multipart(message(0, 0, None))
        await until(lambda: index.complete("pod.0"))
        task.cancel()
    assert not index.holders


async def test_a_socket_of_the_machine_has_one_rank_whatever_its_metrics_say(tmp_path: Path) -> None:
    index = PrefixIndex()
    async with publisher(f"ipc://{tmp_path}/events") as (socket, address), asyncio.TaskGroup() as group:
        task = group.create_task(EventSubscriber(index, ["pod"], Publisher(address), ranks=3).run())
        await socket.recv()
        await socket.send_multipart(message(0, 0, None))
        await until(lambda: index.complete("pod"))
        task.cancel()


def test_a_message_that_cannot_be_read_counts_as_lost() -> None:
    index = PrefixIndex()
    feed = Feed(index, "pod")
    exhaust(feed.take(message(0, 0, None)))
    exhaust(feed.take(to_frames(b"", 1, b"\xc1")))
    exhaust(feed.take([b"one frame"]))
    assert depth(index) == 1
    exhaust(feed.take(message(2, 1, 0)))
    assert depth(index) == 0
    size = index.size()
    assert (size.gaps, size.unusable) == (1, 1)


def recorded_messages() -> list[list[bytes]]:
    """For each message the number of frames, then frames behind their lengths; 32 bits big endian."""
    data = (RECORDED / "kv-events.bin").read_bytes()
    messages, at = [], 0
    while at < len(data):
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        frames = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", data, at)
            frames.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        messages.append(frames)
    return messages


def test_messages_recorded_from_vllm_fill_the_index() -> None:
    index = PrefixIndex()
    feed = Feed(index, "pod")
    for frames in recorded_messages():
        exhaust(feed.take(frames))
    index.check()
    events = [event for frames in recorded_messages() for event in decode(from_frames(frames).payload).events]
    plain = next(event for event in events if isinstance(event, BlockStored) and event.extra_keys == [None] * 4)
    chain = token_chain(token_root(), plain.token_ids, KEY_TOKENS)
    assert token_depths(index, chain) == {"pod": len(chain)}
    assert index.size().unusable == 0
